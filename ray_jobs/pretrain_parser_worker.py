"""What every worker does that trains the face parser; epochs, checkpoints and the rest are train_worker's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import Dataset
from torch import Tensor, nn

from dfmvr.config import Settings
from dfmvr.data.augment import step_generator
from dfmvr.data.datasets.celebamask_hq import picture_numbers, read_picture
from dfmvr.data.parsing import vary_geometry
from dfmvr.data.sample import IMAGE_COLUMNS, SCHEMA, BadRow, encode_sample
from dfmvr.evaluation.parsing import confusion, intersection_over_union
from dfmvr.losses.parsing import parsing_loss
from dfmvr.networks.bisenet import BiSeNet
from dfmvr.networks.parser import FaceParser
from dfmvr.training.optim import clip_gradients
from dfmvr.training.step import StepResult
from dfmvr.training.validation import ValidationBatch
from dfmvr.types import REGION_NAMES, ViewBatch
from ray_jobs.reading import epoch_seed, training_dataset
from ray_jobs.train import OpenData, epoch_to_go_on_with
from ray_jobs.train_worker import Job, Worker, work

_READ_CPUS = 0.25
_ROWS_PER_TASK = 16


def open_data(job: Job) -> OpenData:
    """Return what opens the splits."""
    return {
        "train": partial(open_training_data, job.settings, job.run.checkpoints),
        "validation": partial(open_split, job.settings, "validation"),
    }


def open_training_data(settings: Settings, checkpoints: str) -> Dataset:
    """Open the training split, shuffled."""
    return open_split(settings, "train", settings.seed, epoch_to_go_on_with(checkpoints))


def open_split(settings: Settings, split: str, seed: int | None = None, epoch: int = 0) -> Dataset:
    """Open a split of either kind of data; a seed shuffles it."""
    folder = settings.parser.celebamask_hq
    if not folder:
        return training_dataset(settings.data, split, seed=seed, start_epoch=epoch)
    numbers = np.array(picture_numbers(folder, split))
    if seed is not None:
        numbers = np.random.default_rng(epoch_seed(seed, epoch)).permutation(numbers)
    tasks = max(1, len(numbers) // _ROWS_PER_TASK)
    read = partial(encoded_pictures, folder=folder, image_size=settings.data.image_size)
    return ray.data.from_numpy(np.array_split(numbers, tasks)).map_batches(
        read, batch_size=None, batch_format="numpy", num_cpus=_READ_CPUS
    )


def encoded_pictures(batch: dict[str, Any], folder: str, image_size: int) -> pa.Table:
    """Read pictures of CelebAMask-HQ as rows of a data set; a bad one has no picture, its `path` says why."""
    rows = []
    for number in map(int, batch["data"]):
        try:
            row = {**encode_sample(read_picture(folder, number, image_size)), "path": folder}
        except BadRow as error:
            row = {"path": str(error)}
        rows.append({**row, "row": number})
    schema = pa.schema([*(SCHEMA.field(name) for name in IMAGE_COLUMNS), pa.field("path", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def train_on_worker(config: dict[str, Job]) -> None:
    """Train the job in `config["job"]` (Ray Train calls this)."""
    work(ParserWorker(config["job"]))


class ParserWorker(Worker):
    """One rank of the training run."""

    def build(self) -> str:
        """Make the network; there is no face model."""
        self.network: BiSeNet = BiSeNet(self.settings.parser.network).to(self.device).train()
        return ""

    def use(self, network: nn.Module) -> None:
        """Train through `network`."""
        self._together = network

    def optimise(self, batches: list[ViewBatch]) -> StepResult:
        """Move the weights once, by one view of every sample, drawn and varied at random."""
        generator = step_generator(self.settings.seed, self.state.step, self.rank)
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        bf16 = self.settings.training.precision == "bf16"
        for batch in batches:
            images, labels = vary_geometry(*one_view(batch, generator), self._image_size, generator)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                scores = self._together(images)
            loss = parsing_loss(scores.float(), labels)
            (loss / len(batches)).backward()
            losses.append(loss.detach())
        norm = clip_gradients(self.network, self.settings.optimiser.clip_norm)
        value = float(torch.stack(losses).mean())
        result = StepResult(value, {"parsing": value}, float(norm))
        if not result.skipped:
            self.optimiser.step()
        return result

    def validation_sums(self, batches: Iterator[ValidationBatch]) -> Tensor:
        """Count pixels by true and seen region."""
        counts = count_regions(self.network, self._image_size, (batch.views for batch in batches))
        self.network.train().requires_grad_(True)
        return counts

    def validation_means(self, sums: Tensor) -> dict[str, float]:
        """Return the figures of all regions; the loss is what their mean lacks."""
        figures = intersection_over_union(sums)
        return {"val_loss": 1 - figures["mean"], **{f"val_iou_{name}": iou for name, iou in figures.items()}}

    @property
    def _image_size(self) -> int:
        return self.settings.parser.network.image_size


def one_view(batch: ViewBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a view of every sample: pictures [B, 3, H, W] and labels [B, H, W]."""
    samples = torch.arange(len(batch.images))
    views = torch.randint(batch.n_views, (len(samples),), generator=generator)
    return batch.images[samples, views], batch.masks[samples, views]


def count_regions(network: BiSeNet, image_size: int, batches: Iterator[ViewBatch]) -> Tensor:
    """Count the pixels of every (true, seen) region, [10, 10] float64; the network is left frozen."""
    parser = FaceParser(network, image_size)
    counts = torch.zeros(len(REGION_NAMES), len(REGION_NAMES), dtype=torch.float64)
    for batch in batches:
        counts += confusion(parser(batch.images), batch.masks).cpu()
    return counts
