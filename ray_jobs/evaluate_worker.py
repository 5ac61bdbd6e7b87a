"""Predicting and measuring on Ray Data: what runs in the workers of `ray_jobs.evaluate`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from dfmvr.config import Settings
from dfmvr.data import storage
from dfmvr.data.augment import without_views
from dfmvr.data.collate import collate
from dfmvr.data.sample import SCAN_COLUMNS, BadRow, Sample, decode_row
from dfmvr.data.settings import DataSettings
from dfmvr.evaluation.evaluator import Coefficients, Evaluator
from dfmvr.evaluation.gallery import PARAMETERS
from dfmvr.evaluation.results import pack_row, unpack_row
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Predictor
from dfmvr.threads import use_threads
from ray_jobs.reading import training_dataset
from ray_jobs.scaling import cluster_cpus

_WORKER_CPUS = 0.75
"""CPUs that a measuring process claims: less than one, so that reading finds room on a full machine."""


@dataclass(frozen=True)
class RowResult:
    """What became of a stored row."""

    file: str
    index: int
    reason: tuple[str, str, str] | None
    """Field, expected and got, where the row could not be read."""
    row: dict[str, Any]
    """Of `Evaluator`, with the network's parameters; empty where the row could not be read."""


def measure_split(
    settings: Settings, model: str, total: int, workers: int | None = None
) -> Iterator[RowResult]:
    """Measure the first `total` rows of the test split, one result for each as it is ready.

    Args:
        settings: data set and protocol.
        model: folder of the model.
        total: rows.
        workers: processes; None takes one for each CPU, but no more than there are batches.
    """
    batch_size = settings.evaluation.batch_size
    most = workers or cluster_cpus()
    batches = -(-total // batch_size)
    dataset = training_dataset(settings.data, "test", truth=SCAN_COLUMNS).limit(total)
    measured = dataset.map_batches(
        MeasureBatch,
        fn_constructor_args=(settings, model),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=_WORKER_CPUS,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(most, batches))),
    )
    for stored in measured.iter_rows():
        reason = tuple(stored["reason"]) or None
        row = unpack_row(stored["row"]) if reason is None else {}
        yield RowResult(stored["file"], int(stored["index"]), reason, row)


class MeasureBatch:
    """A worker's part: rows in, results out. Models are loaded once."""

    def __init__(self, settings: Settings, model: str) -> None:
        use_threads(1)  # the workers share the machine
        path = settings.face_model.path or None
        self.settings = settings
        self.predictor = Predictor.load(local_model(model), path)
        self.evaluator = Evaluator(
            self.predictor.face_model, MorphableModel.load(path, level=1), settings.evaluation
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict and measure a batch; each row that comes in goes out."""
        places, samples, reasons = [], [], []
        for row in batch.to_pylist():
            places.append((str(row["path"]), int(row["row"])))
            sample, reason = self._decode(row)
            samples.append(sample)
            reasons.append(reason)
        good = [sample for sample in samples if sample is not None]
        results = iter(self._measure(good) if good else [])
        return pa.table(
            {
                "file": [file for file, _ in places],
                "index": [index for _, index in places],
                "reason": pa.array(reasons, pa.list_(pa.string())),
                "row": pa.array(
                    [b"" if sample is None else pack_row(next(results)) for sample in samples], pa.binary()
                ),
            }
        )

    def _decode(self, row: dict[str, Any]) -> tuple[Sample | None, list[str]]:
        data = self.settings.data
        try:
            sample = decode_row(
                row, str(row["path"]), int(row["row"]), views=data.views, image_size=data.image_size
            )
        except BadRow as error:
            return None, [error.field, error.expected, error.got]
        if sample.scan_vertices is None:
            return None, ["scan_vertices", "a scan to measure against", "null"]
        return sample, []

    def _measure(self, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        """Yield a row of results for each sample.

        Raises:
            ValueError: the network predicts numbers that are not finite.
        """
        batch = collate(samples, self.settings.data)
        if given := self.settings.evaluation.given_views:
            missing = torch.tensor([name not in given for name in self.settings.data.views])
            batch = without_views(batch, missing.expand(len(samples), -1), self.settings.data)
        params = self.predictor.predict_params(batch)
        arrays = {name: getattr(params, name).cpu().numpy() for name in PARAMETERS}
        for index, sample in enumerate(samples):
            own = {name: values[index] for name, values in arrays.items()}
            for name, values in own.items():
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"sample {sample.sample_id!r}: expected finite parameters from the network, got "
                        f"{name} with NaN or infinity"
                    )
            row = self.evaluator(sample, Coefficients(own["identity"], own["expression"]))
            yield row | own | {"backend": self.evaluator.backend}


def read_stored_row(settings: DataSettings, path: str, index: int) -> Sample:
    """Return one stored sample, with its scan.

    Args:
        settings: data set, views and image size.
        path: of the file, as the column `path` of `training_dataset` has it.
        index: of the row in its file.

    Raises:
        BadRow: it cannot be decoded.
        ValueError: the file has no such row.
    """
    system, _ = storage.filesystem(settings.uri)
    with system.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["row"]).column("row").to_pylist()
            if index in rows:
                row = file.read_row_group(group).slice(rows.index(index), 1).to_pylist()[0]
                return decode_row(row, path, index, views=settings.views, image_size=settings.image_size)
    raise ValueError(f"{path}: expected a row {index}, found none")


@cache
def local_model(uri: str) -> Path:
    """Return a local folder with the model; one in an object store is fetched, once in a process."""
    if "://" not in uri:
        return Path(uri)
    folder = Path(tempfile.mkdtemp(prefix="dfmvr-model-"))
    for file in storage.list_files(uri):
        (folder / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
    return folder
