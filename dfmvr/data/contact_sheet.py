"""What a data set holds, in words and on one sheet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfmvr.data import storage
from dfmvr.data.manifest import SPLITS, manifest_uri, read_manifest
from dfmvr.data.preprocess.weight_map import weight_map
from dfmvr.data.sample import SCHEMA, BadRow, Sample, decode_row

TILE = 128
"""Side in pixels of one picture on the sheet."""
GAP = 4
LANDMARK_COLOUR = (40, 230, 90)
UNSURE_COLOUR = (240, 150, 30)
"""Of landmarks that count half or less."""
REGION_COLOURS = np.array(
    [
        *((0, 0, 0), (150, 110, 90), (230, 130, 40), (250, 210, 60), (40, 130, 230), (90, 210, 240)),
        *((60, 170, 90), (130, 20, 40), (240, 110, 150), (190, 60, 110)),
    ],
    np.uint8,
)
"""RGB of each region label."""
_OPTIONAL = ("landmarks_3d", "scan_vertices", "scan_landmarks_7", "dense_vertices")


@dataclass(frozen=True, eq=False)
class SplitPart:
    """Some samples of a split: those of its first file."""

    split: str
    files: int
    samples: tuple[Sample, ...]
    bad: tuple[str, ...]
    """What is wrong with the rows that do not decode."""


def read_part(uri: str, split: str, count: int) -> SplitPart:
    """Read up to `count` samples of a split.

    Raises:
        ValueError: the first file is not Parquet, or has not the schema's columns.
    """
    files = storage.list_files(storage.join(uri, split), ".parquet")
    samples: list[Sample] = []
    bad: list[str] = []
    for index, row in enumerate(_first_rows(files[0], count) if files else []):
        try:
            samples.append(decode_row(row, files[0], index))
        except BadRow as error:
            bad.append(str(error))
    return SplitPart(split, len(files), tuple(samples), tuple(bad))


def describe(uri: str, parts: dict[str, SplitPart]) -> list[str]:
    """Say what a data set holds.

    Args:
        uri: its folder.
        parts: by split, as `read_part` gives them.

    Returns:
        Lines of text.

    Raises:
        FileNotFoundError: there are no files of samples.
    """
    if not any(part.files for part in parts.values()):
        raise FileNotFoundError(
            f"{uri}: expected a data set with {'/, '.join(SPLITS)}/ and .parquet files in them, found none"
        )
    lines = _totals(uri)
    for part in parts.values():
        lines += _describe_part(part)
    rejects = storage.join(uri, "rejects.parquet")
    if storage.exists(rejects):
        reasons = Counter(pq.read_table(pa.BufferReader(storage.read_bytes(rejects)))["reason"].to_pylist())
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"
        lines.append(f"without a sample: {told}")
    return lines


def draw_sheet(samples: list[Sample], weight_dilation: float) -> NDArray[np.uint8]:
    """Draw samples below one another: each view with its landmarks, its mask and its weight map.

    Args:
        samples: one or more, of any views and sizes.
        weight_dilation: as `weight_map` takes it.

    Returns:
        [H, W, 3] RGB.
    """
    rows = [
        np.concatenate(
            [_draw_view(sample, v, weight_dilation) for v in range(len(sample.view_names))], axis=1
        )
        for sample in samples
    ]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded)


def _totals(uri: str) -> list[str]:
    if not storage.exists(manifest_uri(uri)):
        return [f"{uri}: incomplete, dataset.json is missing; the job that makes it goes on where it stopped"]
    manifest = read_manifest(uri)
    kind = manifest.recipe.get("dataset") or ("synthetic" if "synthetic" in manifest.recipe else "unknown")
    lines = [
        f"{uri}: {kind}, recipe {manifest.recipe_hash}",
        f"pictures    {manifest.image_size} x {manifest.image_size} px, views {', '.join(manifest.views)}",
    ]
    lines += [
        f"{split:<12}{manifest.rows[split]} samples of {manifest.subjects[split]} subjects "
        f"in {manifest.shards[split]} files"
        for split in SPLITS
    ]
    return lines


def _describe_part(part: SplitPart) -> list[str]:
    """Say what the samples read of a split lack."""
    count = len(part.samples)
    if not count and not part.bad:
        return [f"{part.split:<12}no rows in its first file" if part.files else f"{part.split:<12}no files"]
    missing = [
        f"{name} in {absent}"
        for name in _OPTIONAL
        if (absent := sum(getattr(sample, name) is None for sample in part.samples))
    ]
    unparsed = sum(not sample.masks.any() for sample in part.samples)
    unknown = sum(not sample.landmarks_2d_weights.any() for sample in part.samples)
    yaws = sum(bool(np.isnan(sample.view_yaws).any()) for sample in part.samples)
    for words, number in (("masks", unparsed), ("2D landmarks", unknown), ("yaws", yaws)):
        if number:
            missing.append(f"{words} in {number}")
    views = Counter(", ".join(sample.view_names) for sample in part.samples)
    sizes = Counter(f"{s.images.shape[2]} x {s.images.shape[1]}" for s in part.samples)
    lines = [
        f"{part.split:<12}first {count} samples: views {_told(views)}; sizes {_told(sizes)}; "
        f"missing: {', '.join(missing) or 'nothing'}"
    ]
    return lines + [f"bad row     {text}" for text in part.bad]


def _told(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return " / ".join(f"{name} ({count})" for name, count in counts.most_common())


def _first_rows(file: str, count: int) -> list[dict[str, Any]]:
    system, path = storage.filesystem(file)
    try:
        parquet = pq.ParquetFile(path, filesystem=system)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: expected a Parquet file, got something else ({error})") from error
    lacking = [name for name in SCHEMA.names if name not in parquet.schema_arrow.names]
    if lacking:
        raise ValueError(f"{file}: expected the columns of a data set, got none named {', '.join(lacking)}")
    rows: list[dict[str, Any]] = []
    for batch in parquet.iter_batches(batch_size=min(count, 32)):
        rows += batch.to_pylist()
        if len(rows) >= count:
            break
    return rows[:count]


def _draw_view(sample: Sample, view: int, weight_dilation: float) -> NDArray[np.uint8]:
    """Draw one view's three tiles side by side."""
    image, mask = sample.images[view], sample.masks[view]
    weights = weight_map(mask, weight_dilation)
    grey = np.repeat(np.round(weights * 255).astype(np.uint8)[..., None], 3, -1)
    tiles = [
        _with_landmarks(_tile(image), sample, view),
        _tile(image // 2 + REGION_COLOURS[mask] // 2, cv2.INTER_NEAREST),
        _tile(grey, cv2.INTER_NEAREST),
    ]
    cv2.putText(tiles[0], sample.view_names[view], (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
    return np.pad(np.concatenate(tiles, axis=1), ((0, 0), (0, GAP), (0, 0)), constant_values=255)


def _with_landmarks(tile: NDArray[np.uint8], sample: Sample, view: int) -> NDArray[np.uint8]:
    scale = [TILE / sample.images.shape[2], TILE / sample.images.shape[1]]
    points = np.floor(sample.landmarks_2d[view] * scale).astype(int)
    for (x, y), weight in zip(points, sample.landmarks_2d_weights[view], strict=True):
        if weight > 0:
            colour = LANDMARK_COLOUR if weight > 0.5 else UNSURE_COLOUR
            tile[max(y - 1, 0) : max(y + 1, 0), max(x - 1, 0) : max(x + 1, 0)] = colour
    return tile


def _tile(picture: NDArray[np.uint8], interpolation: int = cv2.INTER_AREA) -> NDArray[np.uint8]:
    return np.array(cv2.resize(picture, (TILE, TILE), interpolation=interpolation), np.uint8)
