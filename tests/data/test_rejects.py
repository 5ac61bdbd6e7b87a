from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dfmvr.data.rejects import Rejects, TooManyBadRows, decode_rows
from dfmvr.data.sample import BadRow, Sample, encode_sample
from dfmvr.data.settings import DataSettings


def bad(row: int) -> BadRow:
    return BadRow("part-00000.parquet", row, "images", "a JPEG", "nothing")


def test_a_row_counts_once_and_is_listed(tmp_path: Path) -> None:
    uri = str(tmp_path / "logs" / "rejects.jsonl")
    rejects = Rejects(0.02, 100, uri)
    for row in (3, 4, 3):
        rejects.add(bad(row))
    expected = [
        {"file": "part-00000.parquet", "row": row, "reason": "images: expected a JPEG, got nothing"}
        for row in (3, 4)
    ]
    assert rejects.items == expected
    assert [json.loads(line) for line in Path(uri).read_text().splitlines()] == expected


def test_too_many_bad_rows_stop_the_reading(tmp_path: Path) -> None:
    rejects = Rejects(0.02, 100, str(tmp_path / "rejects.jsonl"))
    rejects.add(bad(1))
    rejects.add(bad(2))
    message = (
        r"3 of 100 rows are bad, expected a share of at most 0.02 \(data.max_bad_share\); the last one: "
        r"part-00000.parquet, row 5: images: .*; all are listed in .*rejects.jsonl"
    )
    with pytest.raises(TooManyBadRows, match=message):
        rejects.add(bad(5))


def test_good_rows_are_decoded_and_bad_ones_set_aside(make_sample: Callable[..., Sample]) -> None:
    rows = [encode_sample(make_sample(k)) | {"path": "file", "row": k} for k in range(3)]
    rows[1]["images"] = None
    rejects = Rejects(0.5, 3)
    samples = decode_rows(rows, DataSettings(image_size=32, views=("front",)), rejects)
    assert [sample.sample_id for sample in samples] == ["s000-e00", "s002-e00"]
    assert samples[0].view_names == ("front",)
    assert [(item["file"], item["row"]) for item in rejects.items] == [("file", 1)]
