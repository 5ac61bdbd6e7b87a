"""Samples made on the fly, in the order of a training run: what reading.py is to a stored data set.

A batch is a function of the seed, the epoch, the rank and its place in the epoch alone, so that a run which
stops in the middle of an epoch goes on with the very batches that it would have made.
"""

from __future__ import annotations

from collections.abc import Iterator

from dfmvr.data.augment import augment, step_generator
from dfmvr.data.on_the_fly.generator import TRAINING, VALIDATION, OnTheFly, place_generator
from dfmvr.data.settings import DataSettings
from dfmvr.training.validation import ValidationBatch
from dfmvr.types import ViewBatch


def made_batches(
    maker: OnTheFly,
    settings: DataSettings,
    rows: int,
    *,
    epoch: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    skip_batches: int = 0,
) -> Iterator[ViewBatch]:
    """Make this rank's batches of an epoch.

    Args:
        maker: on the device that trains.
        settings: batch size, augmentation.
        rows: samples of an epoch, of all ranks; those that fill no batch of every rank are left out.
        epoch: of training.
        seed: of the run.
        rank: of this worker.
        world_size: number of workers.
        skip_batches: leave out this many at the start, unmade.
    """
    for index in range(skip_batches, rows // world_size // settings.batch_size):
        generator = place_generator(maker.device, seed, TRAINING, epoch, rank, index)
        batch, _ = maker.make(settings.batch_size, generator, f"e{epoch}-r{rank}-b{index}")
        if settings.augment:
            batch = augment(batch, settings, step_generator(seed, epoch, rank, index))
        yield batch.split_views() if settings.single_views else batch


def made_validation_batches(
    maker: OnTheFly, settings: DataSettings, rows: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[ValidationBatch]:
    """Make this rank's share of the validation samples, the same in every epoch, with the truth.

    Args:
        maker: on the device that trains.
        settings: batch size.
        rows: samples of all ranks.
        seed: of the run.
        rank: of this worker.
        world_size: number of workers, which decides who makes a batch and not what is in it.
    """
    for index, first in list(enumerate(range(0, rows, settings.batch_size)))[rank::world_size]:
        generator = place_generator(maker.device, seed, VALIDATION, index)
        count = min(settings.batch_size, rows - first)
        yield ValidationBatch(*maker.make(count, generator, f"validation-b{index}"))
