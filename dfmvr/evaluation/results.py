"""Rows of results as bytes (between machines) and as a table (to keep)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def pack_row(row: Mapping[str, Any]) -> bytes:
    """Return a row of scalars, strings and arrays as an .npz file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in row.items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_row(data: bytes) -> dict[str, Any]:
    """Return the row that `pack_row` wrote; scalars are Python's."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {name: value.item() if value.ndim == 0 else value for name, value in arrays.items()}


def rows_to_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a Parquet file with one row a sample; arrays become lists, in row-major order.

    The binned areas are left out: they serve only to pool the samples.
    """
    names = [name for name in rows[0] if not name.endswith("_areas")]
    columns = {
        name: [np.ravel(row[name]).tolist() if np.ndim(row[name]) else row[name] for row in rows]
        for name in names
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue())
