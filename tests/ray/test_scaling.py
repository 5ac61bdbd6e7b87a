from __future__ import annotations

import pytest

from dfmvr.training.step import TrainingSettings
from ray_jobs.scaling import PreflightError, preflight, scaling_config, worker_cpus


@pytest.mark.parametrize(
    ("workers", "cluster", "expected"),
    [(2, 2, 0.5), (1, 2, 1.0), (2, 3, 1.0), (2, 16, 7.0), (3, 2, 0.33), (2, 1, 0.0)],
)
def test_workers_share_all_cpus_but_one(workers: int, cluster: float, expected: float) -> None:
    assert worker_cpus(TrainingSettings(workers=workers), cluster) == expected


def test_a_wanted_share_is_kept() -> None:
    assert worker_cpus(TrainingSettings(cpus_per_worker=3), 16) == 3


def test_workers_that_leave_no_cpu_for_reading_are_refused() -> None:
    with pytest.raises(
        PreflightError, match=r"2 training workers of 1 CPUs.*expected a cluster of at least 3 CPUs, got 2"
    ):
        preflight(TrainingSettings(workers=2, cpus_per_worker=1), {"CPU": 2.0})


def test_a_cluster_of_one_cpu_is_refused() -> None:
    with pytest.raises(PreflightError, match="expected a cluster of more than 1 CPUs, got 1"):
        preflight(TrainingSettings(workers=2), {"CPU": 1.0})


def test_missing_gpus_are_told() -> None:
    with pytest.raises(PreflightError, match=r"training\.use_gpu: expected 2 GPUs, one a worker, got 1"):
        preflight(TrainingSettings(use_gpu=True), {"CPU": 8.0, "GPU": 1.0})


@pytest.mark.parametrize("cluster", [2, 3, 4, 16])
def test_what_passes_the_preflight_fits_with_the_reader(cluster: int) -> None:
    resources = {"CPU": float(cluster), "GPU": 2.0}
    training = TrainingSettings(workers=2, use_gpu=True)
    preflight(training, resources)
    scaling = scaling_config(training, resources)
    assert scaling.num_workers == 2
    assert scaling.use_gpu
    assert 2 * scaling.resources_per_worker["CPU"] + 1 <= cluster
    assert scaling.resources_per_worker["GPU"] == 1
