"""Reading a data set with Ray Data: rows are shuffled encoded, and decoded late, in the worker.

Order is a function of the seed and the epoch alone, so that a run which stops in the middle of an epoch can
go on from there: open the data set with `start_epoch`, and skip the batches that were done.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import DataIterator, Dataset, FileShuffleConfig
from ray.data.context import DataContext

from dfmvr.data import storage
from dfmvr.data.augment import augment as augment_batch
from dfmvr.data.augment import step_generator
from dfmvr.data.collate import collate
from dfmvr.data.manifest import SPLITS
from dfmvr.data.rejects import Rejects, TooManyBadRows, decode_rows
from dfmvr.data.sample import IMAGE_COLUMNS, Sample
from dfmvr.data.settings import DataSettings
from dfmvr.training.validation import ValidationBatch
from dfmvr.types import ViewBatch

_READ_CPUS = 0.25  # a read task waits for storage, and must find room beside training workers


@dataclass
class EpochShuffle(FileShuffleConfig):
    """Another order of the files in each epoch, counted from the epoch at which the run (re)starts."""

    start_epoch: int = 0

    def get_seed(self, execution_idx: int = 0) -> int:
        """Return the seed of the order; Ray counts executions from zero again after a restart."""
        return epoch_seed(self.seed or 0, self.start_epoch + execution_idx)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a seed for shuffling that differs between epochs and ranks."""
    return int(torch.randint(2**31, (1,), generator=step_generator(seed, epoch, rank)))


def training_dataset(
    settings: DataSettings,
    split: str,
    *,
    seed: int | None = None,
    start_epoch: int = 0,
    truth: Sequence[str] = (),
) -> Dataset:
    """Open a split; its rows stay encoded.

    Args:
        settings: where the data set lies.
        split: train, validation or test.
        seed: shuffles the files, anew in each execution (epoch); None keeps the stored order.
        start_epoch: epoch of the first execution.
        truth: columns out of SCAN_COLUMNS to read as well.

    Returns:
        Rows with the schema's columns, `row` (index in the file) among them, and `path` (the file).

    Raises:
        ValueError: `split` is not a split's name.
        FileNotFoundError: the split has no files.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    folder = storage.join(settings.uri, split)
    files = storage.list_files(folder, suffix=".parquet")
    if not files:
        raise FileNotFoundError(f"{folder}: expected .parquet files, found none")
    system, _ = storage.filesystem(settings.uri)
    context = DataContext.get_current()
    context.use_datasource_v2 = (
        False  # the newer reader takes twice as long and reads small files as one block
    )
    context.execution_options.preserve_order = True
    context.retried_io_errors = list(storage.TRANSIENT)  # Ray's own list lacks some of a store's 5xx
    dataset = ray.data.read_parquet(
        [storage.filesystem(file)[1] for file in files],
        filesystem=system,
        shuffle=None if seed is None else EpochShuffle(seed=seed, start_epoch=start_epoch),
        include_paths=True,
        num_cpus=_READ_CPUS,
    )
    return dataset.select_columns([*IMAGE_COLUMNS, *truth, "path"])


def steps_per_epoch(rows: int, settings: DataSettings, world_size: int, accumulate: int = 1) -> int:
    """Return the optimiser steps, each of `accumulate` full batches for each of `world_size` ranks, in rows.

    Raises:
        ValueError: there is not even one.
    """
    batch = settings.batch_size * accumulate
    steps = rows // world_size // batch
    if steps == 0:
        raise ValueError(
            f"expected at least {world_size} x {batch} rows, the batches of a step for each worker, "
            f"got {rows}; lower data.batch_size or training.accumulate, or make a larger data set"
        )
    return steps


def iterate_batches(
    shard: DataIterator,
    settings: DataSettings,
    *,
    epoch: int,
    seed: int,
    rejects: Rejects,
    rank: int = 0,
    skip_batches: int = 0,
    shuffle: bool = True,
    augment: bool = False,
    drop_last: bool = True,
    device: torch.device | str = "cpu",
) -> Iterator[ViewBatch]:
    """Go through a shard once, in batches; each call is one execution of the data set.

    A bad row's place is taken by a good sample read just before, so that every rank makes the same number of
    steps of the same size.

    Args:
        shard: `ray.train.get_dataset_shard(...)`, or `dataset.iterator()`.
        settings: batch size, views, shuffling, augmentation.
        epoch: of training; decides, with `seed` and `rank`, order and augmentation.
        seed: of the run.
        rejects: takes bad rows.
        rank: of this worker.
        skip_batches: leave out this many at the start, undecoded.
        shuffle: mix rows within a buffer of `settings.shuffle_rows`.
        augment: vary the images.
        drop_last: leave out a last batch that is not full.
        device: that the batches are moved to, before augmentation.

    Raises:
        TooManyBadRows: as `Rejects.add`, or not one row could be decoded.
    """
    tables = shard.iter_batches(
        batch_size=settings.batch_size,
        batch_format="pyarrow",
        drop_last=drop_last,
        prefetch_batches=settings.prefetch_batches,
        local_shuffle_buffer_size=settings.shuffle_rows if shuffle else None,
        local_shuffle_seed=epoch_seed(seed, epoch, rank) if shuffle else None,
    )
    remaining = itertools.islice(tables, skip_batches, None)
    for index, samples in enumerate(_full_batches(remaining, settings, rejects), start=skip_batches):
        batch = collate(samples, settings).to(device)
        if augment:
            batch = augment_batch(batch, settings, step_generator(seed, epoch, rank, index))
        yield batch.split_views() if settings.single_views else batch


def validation_batches(
    shard: DataIterator, settings: DataSettings, rejects: Rejects
) -> Iterator[ValidationBatch]:
    """Go through a shard once in its stored order, unvaried, to the last row.

    Args:
        shard: of a data set opened with the column `dense_vertices`, where the truth is wanted.
        settings: batch size, views.
        rejects: takes bad rows.

    Raises:
        TooManyBadRows: as `iterate_batches`.
    """
    tables = shard.iter_batches(
        batch_size=settings.batch_size, batch_format="pyarrow", prefetch_batches=settings.prefetch_batches
    )
    for samples in _full_batches(tables, settings, rejects):
        truths = [sample.dense_vertices for sample in samples if sample.dense_vertices is not None]
        known = len(truths) == len(samples)
        yield ValidationBatch(
            collate(samples, settings), torch.from_numpy(np.stack(truths)) if known else None
        )


def _full_batches(
    tables: Iterable[pa.Table], settings: DataSettings, rejects: Rejects
) -> Iterator[list[Sample]]:
    spare: Sample | None = None
    owed: list[int] = []  # sizes of batches before the first good row
    for table in tables:
        samples = decode_rows(table.to_pylist(), settings, rejects)
        if samples:
            spare = samples[-1]
        owed.append(table.num_rows)
        if spare is not None:
            for size in owed[:-1]:
                yield [spare] * size
            yield samples + [spare] * (owed[-1] - len(samples))
            owed.clear()
    if owed:
        raise TooManyBadRows(f"none of {sum(owed)} rows could be decoded; the last: {rejects.items[-1]}")
