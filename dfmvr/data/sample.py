"""One multi-view sample, and how it is stored: a row of a Parquet file.

Images are JPEG, masks PNG; every other array is a little-endian buffer whose type and shape stand in the
schema's field metadata, V being the number of the row's views. Evaluation rows carry the true scan as well;
training never reads those columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfmvr.types import NINE_VIEWS, REGION_NAMES

SCHEMA_VERSION = 1
ROWS_PER_GROUP = 32
JPEG_QUALITY = 95

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One face seen from V views at one moment."""

    sample_id: str
    subject_id: str
    expression_id: str
    view_names: tuple[str, ...]
    """Names out of NINE_VIEWS, each at most once, in any order."""
    view_yaws: Array
    """[V] float32 radians; NaN where unknown."""
    images: Array
    """[V, H, W, 3] uint8 sRGB."""
    masks: Array
    """[V, H, W] uint8 region labels 0-9."""
    landmarks_2d: Array
    """[V, 68, 2] float32 pixels."""
    landmarks_2d_weights: Array
    """[V, 68] float32 in [0, 1]; 0 where a landmark is unknown."""
    intrinsics: Array
    """[V, 3, 3] float32 pixels."""
    landmarks_3d: Array | None = None
    """[101, 3] float32 mm, in any rigid frame."""
    scan_vertices: Array | None = None
    """[M, 3] float32 mm: the true surface."""
    scan_triangles: Array | None = None
    """[T, 3] int32."""
    scan_landmarks_7: Array | None = None
    """[7, 3] float32 mm, exact, in the scan's frame."""
    dense_vertices: Array | None = None
    """[N, 3] float32 mm: true positions of the face model's level-1 vertices, in the scan's frame."""


@dataclass(frozen=True)
class _Buffer:
    """Type and shape of an array stored as bytes; -1 is any number of rows, "V" the number of views."""

    dtype: str
    shape: tuple[int | str, ...]
    optional: bool = False

    def shape_for(self, n_views: int) -> tuple[int, ...]:
        return tuple(n_views if size == "V" else int(size) for size in self.shape)


_BUFFERS = {
    "view_yaws": _Buffer("<f4", ("V",)),
    "landmarks_2d": _Buffer("<f4", ("V", 68, 2)),
    "landmarks_2d_weights": _Buffer("<f4", ("V", 68)),
    "intrinsics": _Buffer("<f4", ("V", 3, 3)),
    "landmarks_3d": _Buffer("<f4", (101, 3), optional=True),
    "scan_vertices": _Buffer("<f4", (-1, 3), optional=True),
    "scan_triangles": _Buffer("<i4", (-1, 3), optional=True),
    "scan_landmarks_7": _Buffer("<f4", (7, 3), optional=True),
    "dense_vertices": _Buffer("<f4", (-1, 3), optional=True),
}
_IDS = ("sample_id", "subject_id", "expression_id")
SCAN_COLUMNS = ("scan_vertices", "scan_triangles", "scan_landmarks_7", "dense_vertices")
"""Columns of the truth: null in training rows, and skipped by readers that do not evaluate."""


def _schema() -> pa.Schema:
    fields = [pa.field("row", pa.int32(), metadata={"meaning": "index of the row in its file"})]
    fields += [pa.field(name, pa.string()) for name in _IDS]
    fields.append(pa.field("view_names", pa.list_(pa.string())))
    fields.append(pa.field("images", pa.list_(pa.binary()), metadata={"encoding": "jpeg", "colour": "srgb"}))
    fields.append(pa.field("masks", pa.list_(pa.binary()), metadata={"encoding": "png"}))
    for name, buffer in _BUFFERS.items():
        shape = ",".join(map(str, buffer.shape))
        fields.append(pa.field(name, pa.binary(), metadata={"dtype": buffer.dtype, "shape": shape}))
    return pa.schema(fields, metadata={"dfmvr.schema_version": str(SCHEMA_VERSION)})


SCHEMA = _schema()
IMAGE_COLUMNS = tuple(name for name in SCHEMA.names if name not in SCAN_COLUMNS)
"""Columns that training reads."""


class BadFieldError(ValueError):
    """A field of a sample is not what the schema says."""

    def __init__(self, field: str, expected: str, got: str) -> None:
        super().__init__(field, expected, got)
        self.field, self.expected, self.got = field, expected, got

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, got {self.got}"


class BadRow(ValueError):
    """A stored row that cannot become a sample; names file, row and field."""

    def __init__(self, file: str, row: int, field: str, expected: str, got: str) -> None:
        super().__init__(file, row, field, expected, got)
        self.file, self.row, self.field, self.expected, self.got = file, row, field, expected, got

    @property
    def reason(self) -> str:
        """What is wrong, without the place."""
        return f"{self.field}: expected {self.expected}, got {self.got}"

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


def encode_sample(sample: Sample) -> dict[str, Any]:
    """Return the sample as a row of SCHEMA, without its index `row`.

    Raises:
        ValueError: a field has the wrong shape, holds NaN or a value out of range.
    """
    try:
        check_sample(sample)
    except BadFieldError as error:
        raise ValueError(f"sample {sample.sample_id!r}: {error}") from error
    row: dict[str, Any] = {name: getattr(sample, name) for name in _IDS}
    row["view_names"] = list(sample.view_names)
    row["images"] = [_jpeg(image) for image in sample.images]
    row["masks"] = [_png(mask) for mask in sample.masks]
    for name, buffer in _BUFFERS.items():
        value = getattr(sample, name)
        row[name] = None if value is None else np.ascontiguousarray(value, dtype=buffer.dtype).tobytes()
    return row


def samples_to_parquet(samples: Iterable[Sample], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a Parquet file of the samples; the same samples give the same bytes.

    Args:
        samples: in the order of their rows.
        metadata: text kept in the file's schema beside the schema's version.

    Raises:
        ValueError: as `encode_sample`.
    """
    rows = [{"row": index, **encode_sample(sample)} for index, sample in enumerate(samples)]
    return rows_to_parquet(rows, metadata)


def rows_to_parquet(rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a Parquet file of encoded rows.

    Images do not shrink under compression, so there is none. The scans of a row group share their triangles:
    dictionary encoding stores those once.
    """
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **(metadata or {})})
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist([dict(row) for row in rows], schema=schema),
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression="none",
        use_dictionary=["scan_triangles"],
        dictionary_pagesize_limit=2**25,
        write_statistics=False,
    )
    return bytes(sink.getvalue())


def decode_row(
    row: Mapping[str, Any],
    file: str,
    index: int,
    *,
    views: Sequence[str] | None = None,
    image_size: int | None = None,
) -> Sample:
    """Return the sample that a stored row holds.

    Args:
        row: column name -> value; scan columns may be absent.
        file: where the row comes from, for the error.
        index: of the row in its file, for the error.
        views: views to take, in this order; None takes all that are stored.
        image_size: pixels a side that images must have; None allows any.

    Raises:
        BadRow: a picture does not decode, a view is unknown or absent, a shape differs, a value is NaN or out
            of range.
    """
    try:
        sample = _decode(row, views)
        check_sample(sample, image_size)
    except BadFieldError as error:
        raise BadRow(file, index, error.field, error.expected, error.got) from error
    return sample


def check_sample(sample: Sample, image_size: int | None = None) -> None:
    """Check shapes, types and ranges.

    Raises:
        BadFieldError: for the first field that is wrong.
    """
    _check_views(sample.view_names)
    n_views = len(sample.view_names)
    height, width = _image_shape(sample, image_size)
    _check_array("images", sample.images, np.uint8, (n_views, height, width, 3))
    _check_array("masks", sample.masks, np.uint8, (n_views, height, width))
    highest = int(sample.masks.max(initial=0))
    if highest >= len(REGION_NAMES):
        raise BadFieldError("masks", f"region labels 0-{len(REGION_NAMES) - 1}", f"label {highest}")
    for name, buffer in _BUFFERS.items():
        value = getattr(sample, name)
        if value is None and buffer.optional:
            continue
        _check_array(name, value, np.dtype(buffer.dtype).newbyteorder("="), buffer.shape_for(n_views))
        if name == "view_yaws":
            _check_finite(name, value[~np.isnan(value)])
        else:
            _check_finite(name, value)
    weights = sample.landmarks_2d_weights
    if weights.min() < 0 or weights.max() > 1:
        raise BadFieldError(
            "landmarks_2d_weights", "values in [0, 1]", f"{weights.min():.4g} to {weights.max():.4g}"
        )
    _check_triangles(sample)


def _decode(row: Mapping[str, Any], views: Sequence[str] | None) -> Sample:
    stored = tuple(_value(row, "view_names"))
    _check_views(stored)
    wanted = stored if views is None else tuple(views)
    if not set(wanted) <= set(stored):
        raise BadFieldError("view_names", f"the views {', '.join(wanted)}", ", ".join(stored) or "none")
    order = [stored.index(name) for name in wanted]
    arrays = {name: _from_buffer(row, name, buffer, len(stored)) for name, buffer in _BUFFERS.items()}
    for name, buffer in _BUFFERS.items():
        array = arrays[name]
        if buffer.shape[0] == "V" and array is not None:
            arrays[name] = array[order]
    sample_id, subject_id, expression_id = (str(_value(row, name)) for name in _IDS)
    return Sample(
        sample_id=sample_id,
        subject_id=subject_id,
        expression_id=expression_id,
        view_names=wanted,
        images=_pictures(row, "images", stored, order, cv2.IMREAD_COLOR_RGB),
        masks=_pictures(row, "masks", stored, order, cv2.IMREAD_UNCHANGED),
        **arrays,  # type: ignore[arg-type]  # names and kinds are _BUFFERS'
    )


def _value(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise BadFieldError(
            name, f"a value ({SCHEMA.field(name).type})", "null" if name in row else "no column"
        )
    return value


def _from_buffer(row: Mapping[str, Any], name: str, buffer: _Buffer, n_views: int) -> Array | None:
    if buffer.optional and row.get(name) is None:
        return None
    data = _value(row, name)
    shape = buffer.shape_for(n_views)
    dtype = np.dtype(buffer.dtype)
    step = dtype.itemsize * int(np.prod([size for size in shape if size != -1]))
    fits = len(data) % step == 0 if -1 in shape else len(data) == step
    if not fits:
        expected = f"{'a multiple of ' if -1 in shape else ''}{step} bytes ({buffer.dtype} {list(shape)})"
        raise BadFieldError(name, expected, f"{len(data)} bytes")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _pictures(
    row: Mapping[str, Any], name: str, stored: Sequence[str], order: Sequence[int], flags: int
) -> Array:
    """Decode the chosen views' pictures; all must be of one shape."""
    encoded = _value(row, name)
    if len(encoded) != len(stored):
        raise BadFieldError(name, f"{len(stored)} pictures, one for each view", f"{len(encoded)}")
    pictures: list[Array] = []
    for position in order:
        field = f"{name}[{stored[position]}]"
        picture = _decode_picture(encoded[position], field, flags)
        if pictures and picture.shape != pictures[0].shape:
            raise BadFieldError(
                field, f"shape {list(pictures[0].shape)} as the first view", f"{list(picture.shape)}"
            )
        pictures.append(picture)
    return np.stack(pictures)


def _decode_picture(data: bytes | None, field: str, flags: int) -> Array:
    kind, end = ("a PNG", b"IEND\xaeB`\x82") if flags == cv2.IMREAD_UNCHANGED else ("a JPEG", b"\xff\xd9")
    # OpenCV fills the missing part of a truncated picture with grey: the end mark tells.
    if not data or not data.endswith(end):
        raise BadFieldError(field, f"{kind} with its end mark", f"{len(data or b'')} bytes without")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        picture = None
    if picture is None:
        raise BadFieldError(field, f"{kind}", f"{len(data)} bytes that do not decode")
    return picture


def _jpeg(image: Array) -> bytes:
    bgr = np.ascontiguousarray(image[..., ::-1])
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _png(mask: Array) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(mask))[1].tobytes()


def _check_views(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in NINE_VIEWS]
    if unknown or not names or len(set(names)) != len(names):
        expected = f"one or more of {', '.join(NINE_VIEWS)}, each once"
        raise BadFieldError("view_names", expected, ", ".join(map(str, names)) or "none")


def _image_shape(sample: Sample, image_size: int | None) -> tuple[int, int]:
    shape = sample.images.shape
    if image_size is not None:
        if shape[1:3] != (image_size, image_size):
            raise BadFieldError(
                "images", f"{image_size} x {image_size} px", " x ".join(map(str, shape[1:3])) + " px"
            )
    elif len(shape) != 4 or 0 in shape:
        raise BadFieldError("images", "shape [V, H, W, 3]", f"{list(shape)}")
    return int(shape[1]), int(shape[2])


def _check_array(name: str, value: Array | None, dtype: Any, shape: tuple[Any, ...]) -> None:
    if value is None:
        raise BadFieldError(name, f"{np.dtype(dtype)} {list(shape)}", "nothing")
    matches = value.ndim == len(shape) and all(
        want in (-1, got) for want, got in zip(shape, value.shape, strict=True)
    )
    if not matches or value.dtype != dtype or value.size == 0:
        raise BadFieldError(name, f"{np.dtype(dtype)} {list(shape)}", f"{value.dtype} {list(value.shape)}")


def _check_finite(name: str, value: Array) -> None:
    bad = int(value.size - np.isfinite(value).sum())
    if bad:
        raise BadFieldError(name, "finite numbers", f"{bad} NaN or infinite")


def _check_triangles(sample: Sample) -> None:
    if sample.scan_triangles is None:
        return
    count = 0 if sample.scan_vertices is None else len(sample.scan_vertices)
    low, high = int(sample.scan_triangles.min()), int(sample.scan_triangles.max())
    if low < 0 or high >= count:
        raise BadFieldError("scan_triangles", f"indices of the {count} scan vertices", f"{low} to {high}")
