"""The Basel Face Model, as Deep3DFaceRecon and DF-MVR cut it (`BFM_model_front.mat`), as a face-model file.

In the file: shapes in units of 100 mm, x to the subject's left, y up, z out of the face, vertex after vertex
(x1 y1 z1 x2 ...); colours 0-255; indices that count from 1; basis columns already times the standard
deviation, for identity, expression and texture alike. Its `point_buf`, `skinmask` and masks for training are
not read: normals come from the triangles, regions from the landmarks.

The colours are taken for sRGB. The texture model is linear in sRGB, ours in linear RGB: the mean is
linearised, and so is each mode on its own, by the chord between minus and plus one standard deviation.

Axis letters: N vertex, F triangle, P mode, K landmark.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.lighting import srgb_to_linear
from dfmvr.morphable.io import FIXED_MODEL_FORMAT, MODES, SIZE, UNITS, FaceFileError, write_face_file
from dfmvr.morphable.landmarks import KEPT_OF_106
from dfmvr.types import REGION_NAMES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FRONT_FILE = "BFM_model_front.mat"
FIELDS = ("meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints")
"""What is read of the file."""
FIELDS_OF_2009 = ("shapeMU", "shapePC", "shapeEV")
"""What tells the original `01_MorphableModel.mat`."""

MM = 100.0
"""mm for one unit of the file."""
EYES_APART = (50.0, 150.0)
"""mm between the outer corners of the eyes that a file in the right unit can have."""

LICENCE = (
    "Basel Face Model licence of the University of Basel: for the holder of a BFM licence only, not to be "
    "passed on"
)
CREDITS = (
    "Basel Face Model 2009: Paysan, Knothe, Amberg, Romdhani, Vetter, University of Basel. Expression basis: "
    "Guo et al. 2018. Cut of the front: Deep3DFaceRecon (Deng et al. 2019)."
)
REVISION = 1
"""Raised when the method changes."""

BROW_HALF_WIDTH = 4.0
"""mm around the line of the brow's landmarks that are brow."""
LOWER_BROW_DROP = 6.0
"""mm from the brow's landmarks down to its lower edge."""
BRIDGE_HALF_WIDTH, WINGS_HALF_WIDTH = 0.2, 0.5
"""Half widths of the nose, in distances between the inner corners of the eyes."""
NOSE_SIDES = ((0.8, 0.05, 0.15), (0.2, 0.5, 0.3), (0.0, 0.85, 0.15))
"""Weights of landmark 29, the end of the nostrils (31 or 35) and the inner corner of the eye (39 or 42) that
give the three points beside the nose; chosen to fit those of the face model that ships with dfmvr."""


def import_bfm(source: Path, out: Path) -> str:
    """Write a `BFM_model_front.mat` as a face-model .npz with a fixed mesh and return its hash.

    Args:
        source: the .mat file.
        out: the .npz to write.

    Raises:
        FaceFileError: the file is missing, no .mat of this layout, or not in its units, axes or indices.
    """
    fields = _read_fields(source)
    n = len(fields["meanshape"]) // 3
    triangles, landmarks = (_indices(source, name, fields[name], n) for name in ("tri", "keypoints"))
    shape = MM * fields["meanshape"].reshape(-1, 3)
    shape -= shape.mean(axis=0)
    _check_frame(source, shape[landmarks])
    albedo_mean, albedo_modes = _linear_albedo(fields["meantex"], fields["texBase"])
    identity = MM * _modes(fields["idBase"])
    energy = (identity**2).sum(axis=(1, 2))
    arrays: dict[str, np.ndarray] = {
        "triangles": _outwards(shape, triangles).astype(np.int32),
        "mirror": _nearest(shape, shape * (-1, 1, 1)).astype(np.int32),
        "uvs": _unrolled(shape).astype(np.float32),
        "mean_shape": shape.astype(np.float32),
        "identity_variance": (energy / energy.sum()).astype(np.float32),
        **_basis("identity", identity),
        **_basis("expression", MM * _modes(fields["exBase"])),
        "expression_names": np.array([f"bfm_{k:02}" for k in range(SIZE[UNITS])]),
        "expression_mean": np.zeros(SIZE[UNITS], np.float32),
        "expression_covariance": np.eye(SIZE[UNITS], dtype=np.float32),
        "albedo_mean": albedo_mean.astype(np.float32),
        **_basis("albedo", albedo_modes),
        "labels": region_labels(shape, landmarks).astype(np.uint8),
        "landmarks_68": landmarks.astype(np.int32),
        "landmarks_101": landmarks_101(shape, landmarks).astype(np.int32),
    }
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    recipe = {"source": FRONT_FILE, "sha256": digest, "revision": REVISION}
    return write_face_file(out, FIXED_MODEL_FORMAT, arrays, recipe=recipe, licence=LICENCE, credits=CREDITS)


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    """Return FIELDS as float64: vectors flat, bases [3N, P], triangles [F, 3].

    Raises:
        FaceFileError: see `import_bfm`.
    """
    from scipy.io import loadmat, whosmat

    if not path.is_file():
        raise FaceFileError(f"{path}: expected a {FRONT_FILE}, found no such file")
    try:
        names = [name for name, _, _ in whosmat(path)]
        content = loadmat(path, variable_names=FIELDS)
    except NotImplementedError as error:
        raise FaceFileError(
            f"{path}: expected a .mat file of version 5 to 7, got version 7.3 (HDF5); save it again with -v7"
        ) from error
    except Exception as error:  # scipy and zlib raise many kinds on damaged bytes
        raise FaceFileError(f"{path}: expected a readable .mat file, got {error}") from error
    if set(FIELDS_OF_2009) <= set(names):
        raise FaceFileError(
            f"{path}: expected {FRONT_FILE}, got the original model of 2009, which lacks landmarks, "
            f"expressions and the cut of the front; Deep3DFaceRecon makes {FRONT_FILE} from it and "
            "Exp_Pca.bin, std_exp.txt, BFM_front_idx.mat, BFM_exp_idx.mat, facemodel_info.mat"
        )
    missing = [name for name in FIELDS if name not in names]
    if missing:
        raise FaceFileError(f"{path}: expected the fields {', '.join(missing)}, which are missing")
    return _checked(path, {name: content[name] for name in FIELDS})


def _checked(path: Path, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return numeric fields as float64 of the right shapes."""
    for name, array in fields.items():
        if array.dtype.kind not in "fiu":
            raise FaceFileError(f"{path}: {name}: expected real numbers, got {array.dtype}")
        if not np.isfinite(array).all():
            raise FaceFileError(f"{path}: {name}: expected finite values, got NaN or infinity")
    size = fields["meanshape"].size
    if size == 0 or size % 3:
        raise FaceFileError(f"{path}: meanshape: expected 3N numbers, got {size}")
    bases = {"idBase": SIZE[MODES], "exBase": SIZE[UNITS], "texBase": SIZE[MODES]}
    shapes: dict[str, tuple[int, ...]] = {name: (size, modes) for name, modes in bases.items()}
    shapes |= {"meanshape": (size,), "meantex": (size,), "keypoints": (68,), "tri": (len(fields["tri"]), 3)}
    checked = {}
    for name, array in fields.items():
        is_vector = len(shapes[name]) == 1 and array.size == max(array.shape)
        got = array.ravel() if is_vector else array
        if got.shape != shapes[name]:
            raise FaceFileError(
                f"{path}: {name}: expected shape {shapes[name]} (N = {size // 3}), got {array.shape}"
            )
        checked[name] = got.astype(np.float64)
    return checked


def _indices(path: Path, name: str, values: Floats, n_vertices: int) -> Ints:
    """Return indices that count from 1 as indices that count from 0."""
    if not ((values >= 1) & (values <= n_vertices) & (values == np.rint(values))).all():
        raise FaceFileError(
            f"{path}: {name}: expected whole numbers 1..{n_vertices} (indices that count from 1), "
            f"got {values.min():g}..{values.max():g}"
        )
    return values.astype(np.int64) - 1


def _check_frame(path: Path, marks: Floats) -> None:
    """Refuse landmarks [68, 3] mm that do not look like a face in the file's units and axes."""
    across, up, out = marks[45] - marks[36], marks[27] - marks[8], marks[30] - (marks[36] + marks[45]) / 2
    apart = float(np.linalg.norm(across))
    low, high = EYES_APART
    if not low < apart < high:
        raise FaceFileError(
            f"{path}: meanshape: expected units of 100 mm, {low:g} to {high:g} mm between the outer corners "
            f"of the eyes, got {apart:g} mm"
        )
    if not (across[0] > 0 and up[1] > 0 and out[2] > 0):
        raise FaceFileError(
            f"{path}: meanshape: expected x to the subject's left, y up, z out of the face, got from right "
            f"to left eye {across[0]:+.0f} mm in x, from chin to eyes {up[1]:+.0f} mm in y, from eyes to tip "
            f"of nose {out[2]:+.0f} mm in z"
        )


def _outwards(shape: Floats, triangles: Ints) -> Ints:
    """Return the triangles counter-clockwise seen from the front, where most of the surface looks."""
    a, b, c = shape[triangles].transpose(1, 0, 2)
    return triangles if np.cross(b - a, c - a)[:, 2].sum() > 0 else triangles[:, ::-1]


def _modes(columns: Floats) -> Floats:
    """Return basis columns [3N, P] as modes [P, N, 3]."""
    return columns.T.reshape(columns.shape[1], -1, 3)


def _basis(kind: str, modes: Floats) -> dict[str, np.ndarray]:
    """Return the arrays of a basis [P, N, 3]: int16 and a scale for each mode."""
    top = np.abs(modes).max(axis=(1, 2))
    scale = np.where(top > 0, top / np.iinfo(np.int16).max, 1).astype(np.float32)
    values = np.rint(modes / scale[:, None, None]).astype(np.int16)
    return {f"{kind}_basis": values, f"{kind}_scale": scale}


def _linear_albedo(mean: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """Return mean [N, 3] and modes [P, N, 3] in linear RGB from colours [3N], [3N, P] in 0-255."""

    def linear(colours: Floats) -> Floats:
        return srgb_to_linear(torch.from_numpy(colours / 255)).numpy()

    middle, modes = mean.reshape(-1, 3), _modes(columns)
    chords = [(linear(middle + mode) - linear(middle - mode)) / 2 for mode in modes]
    return linear(middle), np.stack(chords)


def _nearest(shape: Floats, points: Floats) -> Ints:
    """Return the vertex [K] nearest to each point [K, 3]."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(shape).query(points)[1], np.int64)


def _unrolled(shape: Floats) -> Floats:
    """Return texture coordinates [N, 2]: a half cylinder around the face, from the chin up."""
    x, y, z = shape.T
    u = 0.5 + np.arctan2(x, z - z.min()) / np.pi
    return np.stack([u, (y - y.min()) / np.ptp(y)], axis=1)


def landmarks_101(shape: Floats, landmarks_68: Ints) -> Ints:
    """Return Pixel-Face's 101 landmarks as the vertices nearest to points between the 68.

    Added to the 68 are: the middle between each two points of the contour, the lower edge of the brows (under
    each brow's four inner points), the middle of each lid, the pupils (middle of the eye's six points) and
    three points on each side of the nose.

    Args:
        shape: [N, 3] mm, the mean.
        landmarks_68: [68] vertices.
    """
    marks = shape[landmarks_68]
    dense = np.empty((106, 3))
    dense[0:33:2], dense[1:33:2] = marks[:17], (marks[:16] + marks[1:17]) / 2
    dense[33:64] = marks[17:48]
    dense[64:72] = marks[18:26] - (0, LOWER_BROW_DROP, 0)
    for at, pupil, eye in ((72, 104, marks[36:42]), (75, 105, marks[42:48])):
        upper, lower = eye[1:3].mean(axis=0), eye[4:6].mean(axis=0)
        dense[at : at + 3] = upper, lower, eye.mean(axis=0)
        dense[pupil] = eye.mean(axis=0)
    for at, ends in ((78, [29, 31, 39]), (79, [29, 35, 42])):
        dense[at:84:2] = np.array(NOSE_SIDES) @ marks[ends]
    dense[84:104] = marks[48:68]
    return _nearest(shape, dense[list(KEPT_OF_106)])


def region_labels(shape: Floats, landmarks_68: Ints) -> Ints:
    """Return the region label [N] of each vertex, drawn around the landmarks as seen from the front.

    Eyes and lips are what their landmarks enclose; the brows, BROW_HALF_WIDTH around their line; the nose
    widens from its bridge to its wings, whose width is the distance between the eyes; all else is skin.

    Args:
        shape: [N, 3] mm, the mean.
        landmarks_68: [68] vertices.
    """
    points, marks = shape[:, :2], shape[landmarks_68, :2]
    label = {name: i for i, name in enumerate(REGION_NAMES)}
    labels = np.full(len(shape), label["skin"], np.int64)
    labels[_inside(_nose_outline(marks), points)] = label["nose"]
    for name, line in (("right_brow", marks[17:22]), ("left_brow", marks[22:27])):
        steps = np.linspace(0, len(line) - 1, 50)
        along = np.stack([np.interp(steps, range(len(line)), line[:, i]) for i in range(2)], axis=1)
        apart = np.linalg.norm(points[:, None] - along, axis=2).min(axis=1)
        labels[apart < BROW_HALF_WIDTH] = label[name]
    for name, outline in (
        ("right_eye", range(36, 42)),
        ("left_eye", range(42, 48)),
        ("upper_lip", (*range(48, 55), *range(64, 59, -1))),
        ("lower_lip", (*range(54, 60), 48, 60, 67, 66, 65, 64)),
        ("mouth", range(60, 68)),
    ):
        labels[_inside(marks[list(outline)], points)] = label[name]
    return labels


def _nose_outline(marks: Floats) -> Floats:
    """Return the outline [P, 2] of the nose from the landmarks [68, 2]."""
    bridge, tip, base = marks[27], marks[30], marks[33]
    between_eyes = np.linalg.norm(marks[42] - marks[39])
    narrow, wide = np.array([(BRIDGE_HALF_WIDTH * between_eyes, 0), (WINGS_HALF_WIDTH * between_eyes, 0)])
    return np.stack([bridge - narrow, tip - wide, marks[31], base, marks[35], tip + wide, bridge + narrow])


def _inside(outline: Floats, points: Floats) -> NDArray[np.bool_]:
    """Return which points [N, 2] an outline [P, 2] winds around."""
    ways = (outline - points[:, None]) @ np.array([1, 1j])
    turns = np.angle(np.roll(ways, -1, axis=1) * ways.conj()).sum(axis=1)
    return np.abs(turns) > np.pi
