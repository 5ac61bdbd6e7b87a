"""Measuring many networks on the same people: a person's truth is made once, for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from tqdm import tqdm

from benchmarks.tables.results import Rows, Runs
from benchmarks.tables.systems import ALL, ANGLES, BY_NAME, Condition, System
from dfmvr.config import Settings
from dfmvr.data.augment import without_views
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import render_sample, split_of
from dfmvr.data.sample import Sample, decode_row, encode_sample
from dfmvr.evaluation.evaluator import Coefficients, Evaluator
from dfmvr.evaluation.protocol import Measurement, Truth
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Predictor
from dfmvr.types import FaceParams
from ray_jobs.scaling import cluster_cpus, init_ray

VALUES = ("rmse", "point_to_plane_rmse", "metric_rmse", "dense", "legacy_df_mvr")
"""Numbers (mm) that are kept of a measurement (protocol.measure)."""


def faces_of_test(settings: Settings, people: int | None = None) -> list[tuple[int, int]]:
    """Return (person, expression) of the test split: one sample a person, neutral and not in turn."""
    synthetic = settings.synthetic
    chosen = [i for i in range(synthetic.n_subjects) if split_of(synthetic, i) == "test"][:people]
    return [(person, k % synthetic.expressions_per_subject) for k, person in enumerate(chosen)]


class Bench:
    """Makes test samples and measures networks on them; people and their truths are kept.

    Args:
        settings: of the data set and the measurement.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        model, dense = (MorphableModel.load(settings.face_model.path or None, level=k) for k in (2, 1))
        self.evaluator = Evaluator(model, dense, settings.evaluation)
        self._samples: dict[tuple[int, int, int | None], Sample] = {}
        self._truths: dict[tuple[int, int], Truth] = {}

    def sample(self, face: tuple[int, int], condition: Condition) -> Sample:
        """Return a test sample as the stored data set has it, but for the angle of its left view."""
        synthetic, seed = self.settings.synthetic, self.settings.seed
        angle = condition.left_angle
        if angle == 0:
            angle = int(np.random.default_rng([seed, *face]).choice(ANGLES))
        key = (*face, angle)
        if key not in self._samples:
            if angle is not None:
                yaws = (-float(angle), *synthetic.view_yaws[1:])
                synthetic = dataclasses.replace(synthetic, view_yaws=yaws)
            made = render_sample(synthetic, seed, *face)
            data = self.settings.data
            stored = encode_sample(made)
            self._samples[key] = decode_row(
                stored, made.sample_id, 0, views=data.views, image_size=data.image_size
            )
        return self._samples[key]

    def truth(self, face: tuple[int, int]) -> Truth:
        """Return what a face is measured against; it is the same from all sides."""
        if face not in self._truths:
            self._truths[face] = self.evaluator.truth(self.sample(face, ALL))
        return self._truths[face]

    def predict(self, predictor: Predictor, sample: Sample, condition: Condition) -> FaceParams:
        """Return the parameters [1] that a network makes of the views that it is given."""
        card, data = predictor.card, self.settings.data
        data = dataclasses.replace(data, tell_missing_views=card.network.view_flags)
        batch = collate([sample], data)
        if condition.given_views:
            missing = torch.tensor([[name not in condition.given_views for name in data.views]])
            batch = without_views(batch, missing, data)
        return predictor.predict_params(batch)

    def measure(self, face: tuple[int, int], params: FaceParams) -> Measurement:
        """Measure a prediction [1] of a face."""
        return self.evaluator.measure(self.truth(face), coefficients(params))

    def rows(self, model: str | None, faces: Sequence[tuple[int, int]], condition: Condition) -> Rows:
        """Return a row of VALUES for each face; without a model, those of the mean face."""
        predictor = None if model is None else Predictor.load(model, self.settings.face_model.path or None)
        rows = []
        for face in faces:
            sample = self.sample(face, condition)
            if predictor is None:
                measured = self.evaluator.measure(self.truth(face), self.evaluator.mean_coefficients)
            else:
                measured = self.measure(face, self.predict(predictor, sample, condition))
            row: dict[str, Any] = {"sample_id": sample.sample_id, "subject_id": sample.subject_id}
            rows.append(row | {name: measured.values[name] for name in VALUES})
        return rows


def coefficients(params: FaceParams) -> Coefficients:
    """Return the shape of a prediction [1]."""
    return Coefficients(params.identity[0].cpu().numpy(), params.expression[0].cpu().numpy())


class Benches:
    """One Bench a CPU of the Ray cluster, each with its own share of the faces."""

    def __init__(self, settings: Settings, faces: Sequence[tuple[int, int]], workers: int) -> None:
        actor: Any = ray.remote(num_cpus=1)(Bench)
        self._benches = [actor.remote(settings) for _ in range(workers)]
        self._shares = [list(faces[k::workers]) for k in range(workers)]

    def rows(self, model: Path | None, condition: Condition) -> Rows:
        """Return the rows of all faces, in the order of their names."""
        folder = None if model is None else str(model.resolve())
        waiting = [
            bench.rows.remote(folder, share, condition)
            for bench, share in zip(self._benches, self._shares, strict=True)
        ]
        rows = [row for part in ray.get(waiting) for row in part]
        return sorted(rows, key=lambda row: str(row["sample_id"]))


class Measurements:
    """Measures trained systems on first asking, on Ray, and keeps the rows.

    Args:
        runs: the trained systems.
        settings: of the data set and the measurement.
        people: how many test people; None takes all.
    """

    def __init__(self, runs: Runs, settings: Settings, people: int | None) -> None:
        self.runs = runs
        faces = faces_of_test(settings, people)
        self._names = sorted(f"s{person:05d}-e{expression:02d}" for person, expression in faces)
        init_ray()
        self._benches = Benches(settings, faces, cluster_cpus())
        self._bar = tqdm(unit=" measurements", desc="measure", dynamic_ncols=True)

    def __enter__(self) -> Measurements:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, name: str, condition: Condition) -> list[Rows]:
        """Return the rows of each trained seed of a system; but for ALL, of the first seed alone."""
        system = BY_NAME[name]
        seeds = self.runs.trained_seeds(system)
        return [self._rows(system, seed, condition) for seed in (seeds if condition == ALL else seeds[:1])]

    def mean_face(self) -> Rows:
        """Return the rows of the mean face."""
        return self._rows(None, 0, ALL)

    def _rows(self, system: System | None, seed: int, condition: Condition) -> Rows:
        self._bar.set_postfix_str(f"{system.name if system else 'mean face'}, {condition.name}")
        model = None if system is None else self.runs.model(system, seed)
        make = partial(self._benches.rows, model, condition)
        rows = self.runs.rows(system, seed, condition, self._names, make)
        self._bar.update()
        return rows
