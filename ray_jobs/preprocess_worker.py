"""The shards of a data set of photographs: which records each holds, and how one is made.

A shard's file carries, beside its rows, what its records could not give: so a shard that is there is whole,
and nothing is told twice or lost when a job is stopped and started again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray import cloudpickle

from dfmvr.data import storage
from dfmvr.data.datasets.records import Problem, Record
from dfmvr.data.manifest import SPLITS, shard_uri
from dfmvr.data.preprocess.pipeline import Preprocessor, Reject, subject_split
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.sample import encode_sample, rows_to_parquet
from dfmvr.threads import use_threads

RECORDS_PER_SHARD = 32
RECORDS_AT_ONCE = 4
"""Records whose photographs are in memory together: some 12 pictures of up to 80 megapixels."""
_RECIPE, _RECORDS, _REJECTS, _SUBJECTS = (
    f"dfmvr.{name}" for name in ("recipe_hash", "records_hash", "rejects", "subjects")
)


@dataclass(frozen=True, eq=False)
class Shard:
    """A file of the data set, and the records that it is made of."""

    uri: str
    split: str
    records: tuple[Record, ...]

    @property
    def records_hash(self) -> str:
        """Changes with the records' names and pictures."""
        text = json.dumps(
            [
                [
                    record.subject_id,
                    record.expression_id,
                    sorted((name, p.uri, p.yaw, p.turn) for name, p in record.pictures.items()),
                ]
                for record in self.records
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ShardFacts:
    """What a shard's file says of itself."""

    recipe_hash: str
    records_hash: str
    rows: int
    subjects: tuple[str, ...]
    """Of the rows."""
    rejects: tuple[Reject, ...]


def plan_shards(
    uri: str, items: Iterable[Record | Problem], shares: Sequence[float], problems: list[Reject]
) -> Iterator[Shard]:
    """Divide records into splits by subject, and these into shards, in the order in which they come.

    Args:
        uri: folder of the data set to write.
        items: what an adapter reads.
        shares: of the subjects in each split, where a record does not fix it.
        problems: takes what could not become a record, and records whose subject is in another split already.
    """
    waiting: dict[str, list[Record]] = {split: [] for split in SPLITS}
    made = dict.fromkeys(SPLITS, 0)
    split_of: dict[str, str] = {}

    def close(split: str) -> Shard:
        place = shard_uri(uri, split, made[split])
        records, waiting[split] = tuple(waiting[split]), []
        made[split] += 1
        return Shard(place, split, records)

    for item in items:
        if isinstance(item, Problem):
            detail = f"expected {item.expected}, got {item.got}"
            problems.append(Reject(item.path, "", "", "", "unreadable", detail))
            continue
        split = item.split or subject_split(item.subject_id, shares)
        first = split_of.setdefault(item.subject_id, split)
        if first != split:
            detail = f"expected the split {first}, in which its subject is already, got {split}"
            problems.append(Reject("", item.subject_id, item.expression_id, "", "unreadable", detail))
            continue
        waiting[split].append(_without_truth(item) if split == "train" else item)
        if len(waiting[split]) == RECORDS_PER_SHARD:
            yield close(split)
    for split in SPLITS:
        if waiting[split]:
            yield close(split)


def read_facts(uri: str) -> ShardFacts | None:
    """Return what a shard's file says of itself; None for a file that this job did not write.

    Raises:
        StorageError: it cannot be read.
    """
    system, path = storage.filesystem(uri)
    try:
        footer = pq.read_metadata(path, filesystem=system)
    except pa.ArrowInvalid:
        return None
    found = {
        key.decode(): value.decode() for key, value in (footer.metadata or {}).items() if b"dfmvr" in key
    }
    if not {_RECIPE, _RECORDS, _REJECTS, _SUBJECTS} <= set(found):
        return None
    return ShardFacts(
        recipe_hash=found[_RECIPE],
        records_hash=found[_RECORDS],
        rows=footer.num_rows,
        subjects=tuple(json.loads(found[_SUBJECTS])),
        rejects=tuple(Reject(**item) for item in json.loads(found[_REJECTS])),
    )


def pack(shard: Shard) -> pa.Table:
    """Return a shard as a table of one row, to send to a worker."""
    return pa.table({"shard": pa.array([cloudpickle.dumps(shard)], pa.large_binary())})


class ShardMaker:
    """Makes shards; an actor of Ray Data, so that networks are loaded once.

    Args:
        settings: of the samples.
        recipe_hash: of the data set.
    """

    def __init__(self, settings: PreprocessSettings, recipe_hash: str) -> None:
        use_threads(1)  # the processes share the cores
        self._preprocess = Preprocessor(settings)
        self._recipe_hash = recipe_hash

    def __call__(self, table: pa.Table) -> pa.Table:
        """Make the shards of packed rows; return how many pictures each had.

        Raises:
            StorageError: a picture's storage does not answer, or the shard cannot be written.
        """
        counts = [self.make(cloudpickle.loads(value.as_py())) for value in table["shard"]]
        return pa.table({"pictures": counts})

    def make(self, shard: Shard) -> int:
        """Make and write one shard; return how many pictures its records have."""
        rows: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        records = iter(shard.records)
        while some := list(islice(records, RECORDS_AT_ONCE)):
            for outcome in self._preprocess(some):
                rejects += outcome.rejects
                if outcome.sample is not None:
                    rows.append({"row": len(rows), **encode_sample(outcome.sample)})
        metadata = {
            _RECIPE: self._recipe_hash,
            _RECORDS: shard.records_hash,
            _REJECTS: json.dumps([dataclasses.asdict(reject) for reject in rejects]),
            _SUBJECTS: json.dumps(sorted({row["subject_id"] for row in rows})),
        }
        storage.write_bytes(shard.uri, rows_to_parquet(rows, metadata))
        return sum(len(record.pictures) for record in shard.records)


def _without_truth(record: Record) -> Record:
    """Training never reads scans."""
    return dataclasses.replace(record, scan_vertices=None, scan_triangles=None, scan_landmarks_7=None)
