"""Connecting to Ray: one place for the settings that every job shares."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.train import ScalingConfig

if TYPE_CHECKING:
    from dfmvr.training.step import TrainingSettings

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What a cluster's workers must know of object storage; never credentials, `ray job list` shows these."""


def init_ray(
    address: str | None = None, num_cpus: int | None = None, object_store_memory: int | None = None
) -> None:
    """Connect this process to Ray, once; a second call does nothing.

    Args:
        address: of a running cluster (`auto`, `ray://host:port`), or `local` for a new one on this machine.
            None follows RAY_ADDRESS, and starts a local cluster where that is not set.
        num_cpus: logical CPUs of a local cluster; None counts the machine's. Refused for a running cluster.
        object_store_memory: bytes of a local cluster's object store; None takes 1 GiB.

    Raises:
        ValueError: `num_cpus` or `object_store_memory` is given for a running cluster.
        ConnectionError: no cluster answers at `address`.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    if not local and (num_cpus is not None or object_store_memory is not None):
        raise ValueError(
            f"num_cpus and object_store_memory size a new local cluster; expected neither with the running "
            f"cluster {address!r}, got num_cpus={num_cpus}, object_store_memory={object_store_memory}"
        )
    environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    ray.init(
        address=address,
        num_cpus=num_cpus,
        object_store_memory=(object_store_memory or 2**30) if local else None,
        runtime_env={"env_vars": environment} if environment and not local else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # tells that its bars are off


def cluster_cpus() -> int:
    """Number of logical CPUs of the cluster that this process is connected to."""
    return int(ray.cluster_resources().get("CPU", 0))


_READER_CPUS = 1.0
"""CPUs that must stay free of training workers, for Ray Data's tasks: without, training waits for ever."""


class PreflightError(ValueError):
    """The cluster cannot run a job; the message says what it has, what is needed and what to change."""


def worker_cpus(training: TrainingSettings, cluster_cpus: float) -> float:
    """Return the CPUs that every training worker claims.

    That is `training.cpus_per_worker`, or where that is 0 an equal share of all CPUs but one: whole CPUs
    where there are enough, else a fraction.
    """
    if training.cpus_per_worker > 0:
        return training.cpus_per_worker
    share = (cluster_cpus - _READER_CPUS) / training.workers
    return float(math.floor(share)) if share >= 1 else math.floor(share * 100) / 100


def preflight(training: TrainingSettings, resources: Mapping[str, float]) -> None:
    """Check that the cluster can run the training workers and the reader at the same time.

    Args:
        training: the workers wanted.
        resources: of the cluster, as `ray.cluster_resources()` gives them.

    Raises:
        PreflightError: it cannot, and training would never start.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    each = worker_cpus(training, cpus)
    fewest = training.min_workers or training.workers
    needed = fewest * each + _READER_CPUS
    if each <= 0 or needed > cpus:
        wanted = f"more than {_READER_CPUS:g}" if each <= 0 else f"at least {needed:g}"
        raise PreflightError(
            f"{fewest} training workers of {max(each, 0):g} CPUs, and {_READER_CPUS:g} CPU to read "
            f"data: expected a cluster of {wanted} CPUs, got {cpus:g}; lower training.workers or "
            "training.cpus_per_worker (0 shares the CPUs out), or start Ray with more logical CPUs"
        )
    if training.use_gpu and gpus < fewest:
        raise PreflightError(
            f"training.use_gpu: expected {fewest} GPUs, one a worker, got {gpus:g} in the cluster; "
            "lower training.workers or set training.use_gpu=false"
        )


def scaling_config(training: TrainingSettings, resources: Mapping[str, float]) -> ScalingConfig:
    """Return Ray Train's scaling for the settings, on a cluster that has passed `preflight`."""
    each: dict[str, float] = {"CPU": worker_cpus(training, resources.get("CPU", 0.0))}
    if training.use_gpu:
        each["GPU"] = 1.0
    fewest = training.min_workers or training.workers
    wanted: Any = training.workers if fewest == training.workers else (fewest, training.workers)
    return ScalingConfig(num_workers=wanted, use_gpu=training.use_gpu, resources_per_worker=each)
