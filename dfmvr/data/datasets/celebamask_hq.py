"""CelebAMask-HQ (Lee et al., 2020): photographs of faces whose parts were outlined by hand.

    CelebA-HQ-img/{i}.jpg                                          i = 0, 1, ...
    CelebAMask-HQ-mask-anno/{i // 2000}/{i:05d}_{attribute}.png    a part of the face; above 0: it is here

A part that is not seen has no file. Hair, hat, glasses, ears, earrings, neck, necklace and clothes become
background, as has what hides a face. Nothing says whose left `l_` means, and programs disagree: the side is
read off the picture. Faces are upright there, so of two eyes the one nearer to the picture's left edge is the
subject's right one; a lone eye or brow is compared with the nose, or with the skin where there is no nose.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dfmvr.data.manifest import SPLITS
from dfmvr.data.sample import Array, BadRow, Sample
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.types import FRONT, N_LANDMARKS, REGION_NAMES

PICTURES = "CelebA-HQ-img"
ANNOTATIONS = "CelebAMask-HQ-mask-anno"
MASK_SIZE = 512
_PER_FOLDER = 2000
_GLASSES = "eye_g"
_PAIRS = ("eye", "brow")
_MOUTH = {"mouth": "mouth", "u_lip": "upper_lip", "l_lip": "lower_lip"}
_OVER_THE_FACE = ("l_ear", "r_ear", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
_HELD_OUT = 50
"""Every fiftieth picture is for the test, the one after it for validation. (A person may be in several.)"""


def picture_numbers(folder: str | Path, split: str) -> list[int]:
    """Return the numbers of the pictures in a split, rising.

    Raises:
        ValueError: `split` is not a split's name.
        FileNotFoundError: there are no pictures.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    names = [path.stem for path in (Path(folder) / PICTURES).glob("*.jpg")]
    numbers = sorted(int(name) for name in names if name.isdecimal())
    if not numbers:
        raise FileNotFoundError(
            f"{Path(folder) / PICTURES}: expected CelebAMask-HQ's pictures 0.jpg, 1.jpg, ..., found none"
        )
    splits = {0: "test", 1: "validation"}
    return [number for number in numbers if splits.get(number % _HELD_OUT, "train") == split]


def read_picture(folder: str | Path, number: int, image_size: int) -> Sample:
    """Read a picture and its regions as a sample of one view, without landmarks.

    Args:
        folder: of the data set.
        number: of the picture.
        image_size: pixels a side of the sample.

    Raises:
        BadRow: the picture, or the outline of its skin, is missing, or a file is damaged or of another size.
    """
    path = Path(folder) / PICTURES / f"{number}.jpg"
    image = _decode(path, cv2.IMREAD_COLOR_RGB, number)
    if image is None:
        raise BadRow(str(path), number, "picture", "a JPEG", "no such file")
    if image.shape[0] != image.shape[1]:
        raise BadRow(str(path), number, "picture", "a square", f"{image.shape[1]} x {image.shape[0]} px")
    labels = _regions(Path(folder), number)
    size = (image_size, image_size)
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return Sample(
        sample_id=f"{number:05d}",
        subject_id=f"{number:05d}",
        expression_id="unknown",
        view_names=(FRONT,),
        view_yaws=np.full(1, np.nan, np.float32),
        images=shrunk[None],
        masks=cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)[None],
        landmarks_2d=np.zeros((1, N_LANDMARKS, 2), np.float32),
        landmarks_2d_weights=np.zeros((1, N_LANDMARKS), np.float32),
        intrinsics=default_intrinsics(image_size).numpy()[None],
    )


def _regions(folder: Path, number: int) -> Array:
    """Paint the parts over each other, [512, 512] region labels."""
    skin = _part(folder, number, "skin")
    if skin is None:
        raise BadRow(str(_path(folder, number, "skin")), number, "skin", "an outline", "no such file")
    parts = {name: _part(folder, number, name) for name in ("nose", _GLASSES, *_MOUTH, *_OVER_THE_FACE)}
    labels = np.zeros(skin.shape, np.uint8)
    _paint(labels, skin, "skin")
    _paint(labels, parts["nose"], "nose")
    _paint(labels, parts[_GLASSES], "background")
    middle = _column(skin if parts["nose"] is None else parts["nose"])
    for pair in _PAIRS:
        found = [_part(folder, number, f"{side}_{pair}") for side in "lr"]
        for part, side in _sides([part for part in found if part is not None and part.any()], middle):
            _paint(labels, part, f"{side}_{pair}")
    for name, region in _MOUTH.items():
        _paint(labels, parts[name], region)
    for name in _OVER_THE_FACE:
        _paint(labels, parts[name], "background")
    return labels


def _sides(parts: list[Array], middle: float) -> list[tuple[Array, str]]:
    """Name the subject's side of one or two parts, by where they lie in the picture."""
    parts = sorted(parts, key=_column)
    if len(parts) == 2:
        return [(parts[0], "right"), (parts[1], "left")]
    return [(part, "right" if _column(part) < middle else "left") for part in parts]


def _column(part: Array) -> float:
    """Mean column of a part; the picture's middle for an empty one."""
    columns = part.nonzero()[1]
    return float(columns.mean()) if columns.size else part.shape[1] / 2


def _paint(labels: Array, part: Array | None, region: str) -> None:
    if part is not None:
        labels[part] = REGION_NAMES.index(region)


def _part(folder: Path, number: int, attribute: str) -> Array | None:
    """Read where an attribute is, [512, 512] bool; None where the picture has none."""
    path = _path(folder, number, attribute)
    part = _decode(path, cv2.IMREAD_GRAYSCALE, number)
    if part is not None and part.shape != (MASK_SIZE, MASK_SIZE):
        got = f"{part.shape[1]} x {part.shape[0]} px"
        raise BadRow(str(path), number, attribute, f"{MASK_SIZE} x {MASK_SIZE} px", got)
    return None if part is None else part > 0


def _path(folder: Path, number: int, attribute: str) -> Path:
    return folder / ANNOTATIONS / str(number // _PER_FOLDER) / f"{number:05d}_{attribute}.png"


def _decode(path: Path, flags: int, number: int) -> Array | None:
    """Read a picture file; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadRow(str(path), number, "file", "a file that can be read", str(error)) from error
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if image is None:
        got = f"{len(content)} bytes that do not decode"
        raise BadRow(str(path), number, "file", "a picture", got)
    return image
