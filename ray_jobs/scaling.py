"""Connecting to Ray: one place for the settings that every job shares."""

from __future__ import annotations

import logging
import os

import ray

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


def cluster_cpus() -> int:
    """Number of logical CPUs of the cluster that this process is connected to."""
    return int(ray.cluster_resources().get("CPU", 0))
