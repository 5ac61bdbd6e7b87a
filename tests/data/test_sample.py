from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfmvr.data.sample import (
    IMAGE_COLUMNS,
    SCAN_COLUMNS,
    SCHEMA,
    BadRow,
    Sample,
    decode_row,
    encode_sample,
    samples_to_parquet,
)

MakeSample = Callable[..., Sample]
EXACT = (
    *("view_yaws", "masks", "landmarks_2d", "landmarks_2d_weights", "intrinsics", "landmarks_3d"),
    *SCAN_COLUMNS,
)


@pytest.fixture(scope="module")
def row(make_sample: MakeSample) -> dict[str, Any]:
    return encode_sample(make_sample(0, truth=True))


def test_a_sample_survives_the_file(make_sample: MakeSample) -> None:
    samples = [make_sample(k, truth=True) for k in range(3)]
    table = pq.read_table(io.BytesIO(samples_to_parquet(samples)))
    assert table.schema.equals(SCHEMA)
    for index, stored in enumerate(table.to_pylist()):
        assert stored["row"] == index
        sample = decode_row(stored, "file", index)
        for name in EXACT:
            value = getattr(samples[index], name)
            np.testing.assert_array_equal(getattr(sample, name), value)
            assert getattr(sample, name).dtype == value.dtype
        assert (sample.sample_id, sample.view_names) == (samples[index].sample_id, samples[index].view_names)
        difference = sample.images.astype(float) - samples[index].images
        assert np.abs(difference).mean() < 4  # JPEG
        assert np.corrcoef(sample.images[..., 0].ravel(), samples[index].images[..., 0].ravel())[0, 1] > 0.95


def test_a_training_row_has_no_truth(make_sample: MakeSample) -> None:
    stored = encode_sample(make_sample(0, landmarks_3d=None))
    assert [name for name in SCHEMA.names if name != "row" and stored[name] is None] == [
        "landmarks_3d",
        *SCAN_COLUMNS,
    ]
    sample = decode_row({name: stored[name] for name in IMAGE_COLUMNS if name != "row"}, "file", 0)
    assert sample.landmarks_3d is None
    assert sample.scan_vertices is None


def test_the_same_samples_give_the_same_bytes_in_row_groups_of_32(make_sample: MakeSample) -> None:
    samples = [make_sample(k) for k in range(40)]
    data = samples_to_parquet(samples, {"origin": "test"})
    assert data == samples_to_parquet([make_sample(k) for k in range(40)], {"origin": "test"})
    file = pq.ParquetFile(io.BytesIO(data))
    assert [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)] == [32, 8]
    assert file.schema_arrow.metadata[b"origin"] == b"test"
    assert file.schema_arrow.metadata[b"dfmvr.schema_version"] == b"1"


def test_triangles_that_rows_share_are_stored_once(make_sample: MakeSample) -> None:
    vertices = np.zeros((50_000, 3), np.float32)
    triangles = np.random.default_rng(0).integers(0, 50_000, (100_000, 3)).astype(np.int32)
    tiny = {"scan_vertices": vertices[:1], "scan_triangles": triangles[:1] * 0}
    small = [make_sample(k, truth=True, **tiny) for k in range(8)]
    big = [make_sample(k, truth=True, scan_vertices=vertices, scan_triangles=triangles) for k in range(8)]
    extra = len(samples_to_parquet(big)) - len(samples_to_parquet(small)) - 8 * vertices.nbytes
    assert extra < 1.1 * triangles.nbytes


def test_views_are_taken_by_name(make_sample: MakeSample) -> None:
    original = make_sample(0, view_names=("front", "right", "left"))
    sample = decode_row(encode_sample(original), "file", 0, views=("left", "front"))
    assert sample.view_names == ("left", "front")
    np.testing.assert_array_equal(sample.landmarks_2d, original.landmarks_2d[[2, 0]])
    np.testing.assert_array_equal(sample.masks, original.masks[[2, 0]])
    np.testing.assert_array_equal(sample.view_yaws, original.view_yaws[[2, 0]])


def _damage(row: dict[str, Any], name: str, position: int, value: Any) -> dict[str, Any]:
    return row | {name: [value if k == position else item for k, item in enumerate(row[name])]}


def _floats(count: int, value: float) -> bytes:
    return np.full(count, value, np.float32).tobytes()


BAD_ROWS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "cut picture": (
        lambda row: _damage(row, "images", 1, row["images"][1][:300]),
        r"images\[front\]: expected a JPEG with its end mark, got 300 bytes without",
    ),
    "garbled picture": (
        lambda row: _damage(row, "images", 2, b"\xff\xd8" + bytes(200) + b"\xff\xd9"),
        r"images\[right\]: expected a JPEG, got 204 bytes that do not decode",
    ),
    "garbled mask": (
        lambda row: _damage(row, "masks", 0, b"nothing" + row["masks"][0][-8:]),
        r"masks\[left\]: expected a PNG, got 15 bytes that do not decode",
    ),
    "empty picture": (lambda row: _damage(row, "images", 0, b""), r"images\[left\]: .* got 0 bytes"),
    "no pictures": (lambda row: row | {"images": None}, r"images: expected a value .*, got null"),
    "no column": (
        lambda row: {name: value for name, value in row.items() if name != "masks"},
        r"masks: expected a value .*, got no column",
    ),
    "a picture too few": (
        lambda row: row | {"images": row["images"][:2]},
        "images: expected 3 pictures, one for each view, got 2",
    ),
    "unknown view": (
        lambda row: _damage(row, "view_names", 1, "top"),
        "view_names: expected one or more of left_75, .*, each once, got left, top, right",
    ),
    "a view twice": (
        lambda row: _damage(row, "view_names", 1, "left"),
        "view_names: .* each once, got left, left, right",
    ),
    "short buffer": (
        lambda row: row | {"landmarks_2d": row["landmarks_2d"][:-4]},
        r"landmarks_2d: expected 1632 bytes \(<f4 \[3, 68, 2\]\), got 1628 bytes",
    ),
    "ragged scan": (
        lambda row: row | {"scan_vertices": row["scan_vertices"][:-4]},
        r"scan_vertices: expected a multiple of 12 bytes",
    ),
    "NaN": (
        lambda row: row | {"landmarks_2d": _floats(408, np.nan)},
        "landmarks_2d: expected finite numbers, got 408 NaN or infinite",
    ),
    "infinite yaw": (lambda row: row | {"view_yaws": _floats(3, np.inf)}, "view_yaws: .* got 3 NaN or inf"),
    "NaN in the scan": (
        lambda row: row | {"scan_landmarks_7": _floats(21, np.nan)},
        "scan_landmarks_7: expected finite",
    ),
    "weights": (
        lambda row: row | {"landmarks_2d_weights": _floats(204, 1.5)},
        r"landmarks_2d_weights: expected values in \[0, 1\], got 1.5 to 1.5",
    ),
    "triangles": (
        lambda row: row | {"scan_triangles": np.array([0, 1, 40], np.int32).tobytes()},
        "scan_triangles: expected indices of the 40 scan vertices, got 0 to 40",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_names_file_row_field_and_what_came(row: dict[str, Any], name: str) -> None:
    damage, message = BAD_ROWS[name]
    with pytest.raises(BadRow, match=r"^part-00003.parquet, row 17: " + message) as caught:
        decode_row(damage(row), "part-00003.parquet", 17)
    assert (caught.value.file, caught.value.row) == ("part-00003.parquet", 17)


def test_an_unknown_yaw_is_no_fault(row: dict[str, Any]) -> None:
    assert np.isnan(decode_row(row | {"view_yaws": _floats(3, np.nan)}, "file", 0).view_yaws).all()


def test_a_mask_with_an_unknown_label_is_bad(make_sample: MakeSample) -> None:
    mask = make_sample(0).masks
    with pytest.raises(
        ValueError, match="sample 's000-e00': masks: expected region labels 0-9, got label 10"
    ):
        encode_sample(make_sample(0, masks=np.where(mask > 1, np.uint8(10), mask)))


def test_a_wanted_view_that_is_absent_is_bad(make_sample: MakeSample) -> None:
    whole = make_sample(0)
    changes = {
        name: getattr(whole, name)[1:2] for name in ("view_names", "images", "masks", *EXACT[:1], *EXACT[2:5])
    }
    front = encode_sample(make_sample(0, **changes))
    assert decode_row(front, "file", 0).images.shape == (1, 32, 32, 3)
    with pytest.raises(BadRow, match="view_names: expected the views left, front, right, got front"):
        decode_row(front, "file", 0, views=("left", "front", "right"))


def test_another_image_size_is_bad(row: dict[str, Any]) -> None:
    assert decode_row(row, "file", 0, image_size=32).images.shape[1] == 32
    with pytest.raises(BadRow, match="images: expected 64 x 64 px, got 32 x 32 px"):
        decode_row(row, "file", 0, image_size=64)


def test_views_of_different_sizes_are_bad(row: dict[str, Any], make_sample: MakeSample) -> None:
    other = encode_sample(make_sample(0, image_size=64))
    with pytest.raises(BadRow, match=r"images\[front\]: expected shape \[32, 32, 3\] as the first view"):
        decode_row(_damage(row, "images", 1, other["images"][1]), "file", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"landmarks_3d": np.zeros((68, 3), np.float32)}, r"landmarks_3d: expected float32 \[101, 3\], got"),
        ({"landmarks_2d": np.zeros((3, 68, 2))}, r"expected float32 \[3, 68, 2\], got float64"),
        ({"masks": np.zeros((3, 16, 16), np.uint8)}, r"masks: expected uint8 \[3, 32, 32\]"),
        ({"intrinsics": None}, r"intrinsics: expected float32 \[3, 3, 3\], got nothing"),
        ({"view_names": ()}, "view_names: expected one or more of left_75, .*, each once, got none"),
    ],
)
def test_a_wrong_sample_is_not_stored(make_sample: MakeSample, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_sample(make_sample(0, **changes))


def test_a_bad_row_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(BadRow("file", 3, "images", "a JPEG", "nothing")))
    assert str(error) == "file, row 3: images: expected a JPEG, got nothing"


def test_the_schema_tells_types_and_shapes() -> None:
    field: pa.Field = SCHEMA.field("landmarks_2d")
    assert field.metadata == {b"dtype": b"<f4", b"shape": b"V,68,2"}
