"""How long does it take to measure a scan, and how much faster than trimesh are its distances?

    python -m benchmarks.evaluation [--scans 4] [--rounds 3]

- `seconds_per_scan`: one test sample through the whole protocol, three methods (mean face, network, floor):
  crop, floor fit, registrations, distances, dense errors; `cpu_seconds_per_scan` is its processor time;
- `cpu_seconds_per_face`: of these, what one method costs on a scan that is cropped: two registrations (ICP)
  and the distances;
- `ratio_vs_trimesh`: the closest surface points of all cropped scan vertices, structure included, against
  `trimesh.proximity.closest_point` on the same mesh and points, timed in turn;
- `worst_difference_mm` between the two, and `kdtree_mean_ratio`: the portable backend's mean over trimesh's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import trimesh

from benchmarks.common import ratio, report, time_in_turn
from dfmvr.data.sample import Sample
from dfmvr.evaluation.distance import Surface
from dfmvr.evaluation.evaluator import Coefficients, Evaluator
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.morphable.model import MorphableModel
from dfmvr.morphable.population import FacePopulation


def make_samples(evaluator: Evaluator, count: int) -> list[Sample]:
    """Return samples with scans, from outside the model's span; their pictures are blank."""
    population, rng = FacePopulation.load(), np.random.default_rng(0)
    samples = []
    for index in range(count):
        subject, expression = population.sample_subject(rng), population.sample_expression(rng)
        scan = population.vertices(subject, expression, level=2)
        samples.append(
            Sample(
                sample_id=f"s{index}",
                subject_id=f"s{index}",
                expression_id="e0",
                view_names=("front",),
                view_yaws=np.zeros(1, np.float32),
                images=np.zeros((1, 32, 32, 3), np.uint8),
                masks=np.zeros((1, 32, 32), np.uint8),
                landmarks_2d=np.zeros((1, 68, 2), np.float32),
                landmarks_2d_weights=np.zeros((1, 68), np.float32),
                intrinsics=default_intrinsics(32).numpy()[None],
                scan_vertices=scan,
                scan_triangles=evaluator.model.triangles.numpy().astype(np.int32),
                scan_landmarks_7=scan[evaluator.model.landmarks_7.numpy()],
                dense_vertices=population.vertices(subject, expression, level=1),
            )
        )
    return samples


def half_way(evaluator: Evaluator, sample: Sample) -> Coefficients:
    """Return what a network that has learnt something might predict."""
    floor = evaluator.floor(sample)
    return Coefficients(0.6 * floor.identity, 0.6 * floor.expression)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    evaluator = Evaluator(MorphableModel.load(level=2), MorphableModel.load(level=1), EvaluationSettings())
    samples = make_samples(evaluator, options.scans)
    predictions = [half_way(evaluator, sample) for sample in samples]

    wall, cpu = [], []
    for sample, prediction in zip(samples, predictions, strict=True):
        started, processor = time.perf_counter(), time.process_time()
        evaluator(sample, prediction)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - processor)

    truth = evaluator.truth(samples[0])
    per_face = []
    for _ in range(options.rounds):
        processor = time.process_time()
        evaluator.measure(truth, predictions[0])
        per_face.append(time.process_time() - processor)
    surface = evaluator.face(predictions[0]).surface
    placed = evaluator.measure(truth, predictions[0]).transform.apply(surface.vertices)
    triangles = surface.triangles
    sides = {
        "ours": lambda: Surface(placed, triangles).closest(truth.points),
        "trimesh": lambda: trimesh.proximity.closest_point(
            trimesh.Trimesh(placed, triangles, process=False), truth.points
        ),
    }
    times = time_in_turn(sides, rounds=options.rounds, warm_up=1)
    expected = sides["trimesh"]()[1]
    found = sides["ours"]().distances
    portable = Surface(placed, triangles, "kdtree").closest(truth.points).distances
    report(
        "evaluation",
        {
            "seconds_per_scan": statistics.median(wall),
            "cpu_seconds_per_scan": statistics.median(cpu),
            "cpu_seconds_per_face": statistics.median(per_face),
            "ratio_vs_trimesh": ratio(times["trimesh"], times["ours"]),
            "worst_difference_mm": float(np.abs(found - expected).max()),
            "kdtree_mean_ratio": float(portable.mean() / expected.mean()),
        },
        backend=evaluator.backend,
        points=len(truth.points),
        triangles=len(triangles),
    )


if __name__ == "__main__":
    main()
