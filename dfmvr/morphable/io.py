"""Reading and writing the face model's files: versioned .npz with licence, recipe and hash inside."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dfmvr.files import write_atomic

MODEL_FORMAT = "dfmvr-face-model"
FIXED_MODEL_FORMAT = "dfmvr-fixed-face-model"
POPULATION_FORMAT = "dfmvr-face-population"
VERSION = 1

DEFAULT_MODEL = Path(__file__).with_name("default.npz")
DEFAULT_POPULATION = Path(__file__).with_name("population.npz")

HEADER = ("format", "version", "licence", "credits", "recipe", "hash")
"""Keys of every file: strings, but for the integer version; the recipe is JSON."""

N0, N1, N2, Q, MODES, UNITS = "N0", "N1", "N2", "Q", "identity modes", "expression units"
SIZE = {MODES: 80, UNITS: 64}

MODEL_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "quads": ("iu", (Q, 4)),
    "quad_parts": ("iu", (Q,)),
    "mirror": ("iu", (N0,)),
    "uvs": ("f", (N0, 2)),
    "face_field": ("f", (N0,)),
    "alignment_weights": ("f", (N0,)),
    "mean_shape": ("f", (N0, 3)),
    "identity_basis": ("i", (MODES, N0, 3)),
    "identity_scale": ("f", (MODES,)),
    "identity_variance": ("f", (MODES,)),
    "expression_basis": ("i", (UNITS, N0, 3)),
    "expression_scale": ("f", (UNITS,)),
    "expression_names": ("U", (UNITS,)),
    "expression_mean": ("f", (UNITS,)),
    "expression_covariance": ("f", (UNITS, UNITS)),
    "albedo_mean": ("f", (N1, 3)),
    "albedo_basis": ("i", (MODES, N1, 3)),
    "albedo_scale": ("f", (MODES,)),
    "labels": ("iu", (N2,)),
    "landmarks_68": ("iu", (68,)),
    "landmarks_101": ("iu", (101,)),
}
"""Kinds and shapes of the arrays of a face model; letters that stand twice must agree.

Bases are integers times a scale per mode. Landmarks are vertices of the whole head at level 1 (and so at
level 2); labels belong to the head at level 2, whose first rows are level 1. Subdivision fixes N1 and N2.
"""

FIXED_MODEL_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "triangles": ("iu", ("F", 3)),
    **{
        name: (kinds, tuple(N0 if axis in (N1, N2) else axis for axis in shape))
        for name, (kinds, shape) in MODEL_ARRAYS.items()
        if name not in ("quads", "quad_parts", "face_field", "alignment_weights")
    },
}
"""Kinds and shapes of the arrays of a face model with one mesh of triangles, the same at every level.

It is a face without a head: everything belongs to its N0 vertices. `mirror` is the vertex nearest to the
mirror image, for such a mesh need not be symmetric.
"""

POPULATION_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "neutral": ("f", (N0, 3)),
    "macro_tokens": ("U", ("tokens",)),
    "macro_factors": ("iu", ("macros", 5)),
    "macro_mix": ("f", ("macros", "rank")),
    "macro_basis": ("i", ("rank", "3 N0")),
    "macro_scale": ("f", ("rank",)),
    "slider_names": ("U", ("sliders",)),
    "slider_groups": ("iu", ("sliders",)),
    "slider_kinds": ("iu", ("sliders",)),
    "slider_means": ("f", ("sliders",)),
    "slider_deviations": ("f", ("sliders",)),
    "slider_targets": ("i", ("sliders", 2)),
    "target_values": ("i", ("target entries",)),
    "target_columns": ("iu", ("target entries",)),
    "target_starts": ("iu", ("targets + 1",)),
    "target_scale": ("f", ("targets",)),
    "unit_names": ("U", ("units",)),
    "unit_values": ("i", ("unit entries",)),
    "unit_columns": ("iu", ("unit entries",)),
    "unit_starts": ("iu", ("units + 1",)),
    "unit_scale": ("f", ("units",)),
    "model_hash": ("U", ()),
}
"""Kinds and shapes of the arrays of a population file (see population.py)."""

ARRAYS = {
    MODEL_FORMAT: MODEL_ARRAYS,
    FIXED_MODEL_FORMAT: FIXED_MODEL_ARRAYS,
    POPULATION_FORMAT: POPULATION_ARRAYS,
}
"""The arrays of each format."""


class FaceFileError(ValueError):
    """A face-model or population file is missing, damaged or of another kind."""


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all arrays but `hash` itself."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if name == "hash":
            continue
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def recipe_hash(recipe: Mapping[str, object]) -> str:
    """Return the SHA-256 of a recipe: the settings and versions that a file was made from."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def write_face_file(
    path: Path,
    file_format: str,
    arrays: Mapping[str, np.ndarray],
    *,
    recipe: Mapping[str, object],
    licence: str,
    credits: str,
) -> str:
    """Write a face-model or population file and return its hash.

    Raises:
        FaceFileError: the arrays do not fit the format.
    """
    full = dict(arrays)
    full["format"] = np.array(file_format)
    full["version"] = np.array(VERSION)
    full["licence"] = np.array(licence)
    full["credits"] = np.array(credits)
    full["recipe"] = np.array(json.dumps(recipe, sort_keys=True))
    full["hash"] = np.array(content_hash(full))
    _check(full, file_format, path)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **full)
    write_atomic(path, buffer.getvalue())
    return str(full["hash"])


def read_face_file(path: Path, file_format: str) -> dict[str, np.ndarray]:
    """Read and check a face-model or population file.

    Args:
        path: the .npz file.
        file_format: a key of ARRAYS.

    Raises:
        FaceFileError: the file is missing, not an .npz, of another format or version, lacks an array, has one
            of the wrong kind or shape or with values that are not finite, or does not match its own hash.
    """
    return _verified(read_npz(path, f"a {file_format} file"), file_format, path)


def read_model_file(path: Path) -> dict[str, np.ndarray]:
    """Read and check a face model of either kind: one that is subdivided, or one with a fixed mesh.

    Raises:
        FaceFileError: see `read_face_file`.
    """
    arrays = read_npz(path, f"a {MODEL_FORMAT} file")
    fixed = str(arrays.get("format")) == FIXED_MODEL_FORMAT
    return _verified(arrays, FIXED_MODEL_FORMAT if fixed else MODEL_FORMAT, path)


def _verified(arrays: dict[str, np.ndarray], file_format: str, path: Path) -> dict[str, np.ndarray]:
    """Return arrays that make a file of this format and match their own hash."""
    _check(arrays, file_format, path)
    expected, got = str(arrays["hash"]), content_hash(arrays)
    if expected != got:
        raise FaceFileError(
            f"{path}: hash: expected {expected}, got {got}; the file is damaged or was edited"
        )
    return arrays


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file, without pickles.

    Raises:
        FaceFileError: there is no such file (`what` says what was expected), or it is damaged.
    """
    if not path.is_file():
        raise FaceFileError(f"{path}: expected {what}, found no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds on damaged bytes
        raise FaceFileError(f"{path}: expected a readable .npz file, got {error}") from error


def _check(arrays: Mapping[str, np.ndarray], file_format: str, path: Path) -> None:
    """Refuse arrays that do not make a file of this format."""
    got_format = str(arrays.get("format", "none"))
    if got_format != file_format:
        raise FaceFileError(f"{path}: format: expected {file_format!r}, got {got_format!r}")
    if "version" not in arrays or arrays["version"].shape != () or int(arrays["version"]) != VERSION:
        raise FaceFileError(f"{path}: version: expected {VERSION}, got {arrays.get('version')}")
    expected = ARRAYS[file_format]
    missing = [name for name in (*HEADER, *expected) if name not in arrays]
    if missing:
        raise FaceFileError(f"{path}: expected the arrays {', '.join(missing)}, which are missing")
    sizes: dict[str, int] = dict(SIZE)
    for name, (kinds, shape) in expected.items():
        array = arrays[name]
        if array.dtype.kind not in kinds:
            raise FaceFileError(f"{path}: {name}: expected a type of kind {kinds!r}, got {array.dtype}")
        wanted = tuple(sizes.setdefault(axis, n) if isinstance(axis, str) else axis
                       for axis, n in zip(shape, array.shape, strict=False))  # fmt: skip
        if len(shape) != array.ndim or wanted != array.shape:
            letters = ", ".join(f"{axis}={sizes[axis]}" for axis in shape if axis in sizes)
            raise FaceFileError(f"{path}: {name}: expected shape {shape} ({letters}), got {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FaceFileError(f"{path}: {name}: expected finite values, got NaN or infinity")
