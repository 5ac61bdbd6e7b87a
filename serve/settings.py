"""Settings of the endpoint, checked strictly: a misspelt name or an impossible value stops the start."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dfmvr.config import load_tree

DEVICES = ("auto", "cpu", "cuda")
FINDERS = ("auto", "dlib", "face_alignment", "none")
KEY_MODES = ("auto", "required", "none")


@dataclass(frozen=True)
class ServeSettings:
    """How the endpoint is deployed, what it accepts, and from whom."""

    model: str = ""
    """Folder of the model, local or s3://; empty means the weights that come with the package."""
    model_hash: str = ""
    """SHA-256 that the weights must have; empty takes what is there."""
    face_model: str = ""
    """The face model (.npz) that the network was trained with, local or s3://; empty: the shipped one."""
    device: str = "auto"
    """auto takes a GPU where the replica has one (`gpus`)."""
    landmarks: str = "auto"
    """Who finds faces in pictures without landmarks: dlib, face_alignment, or none (refuse them)."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4.0
    """Requests under way in each replica that autoscaling aims at."""
    cpus: float = 1.0
    """Of each replica; also its number of threads for tensors."""
    gpus: float = 0.0
    """Of each replica."""
    max_batch_size: int = 8
    """Faces computed at once."""
    batch_wait_ms: float = 0.0
    """How long a face waits for others; while one batch is computed the next one gathers anyway."""
    threads: int = 4
    """Of each replica, for reading pictures, finding faces and writing meshes."""

    queue: int = 32
    """Requests that a replica takes in at once; further ones are told 503 and when to try again."""
    avatar_queue: int = 2
    """Animatable heads under way in a replica, one of them being made (seconds, and some 1 GB of memory); 0
    takes that route away, and the page's button."""
    time_limit_s: float = 30.0
    """From a request's arrival to its answer; after it, 504."""
    avatar_time_limit_s: float = 50.0
    """The same for an animatable head: seconds on a free core, and it may wait for another head."""
    body_timeout_s: float = 20.0
    """For a request's body to arrive; after it, 408."""
    max_body_mb: float = 40.0
    """Of a request, in 10^6 bytes, counted while it arrives."""
    max_megapixels: float = 50.0
    """Of a picture."""
    max_batch_items: int = 16
    """Faces of a request to /v1/reconstructions:batch."""
    idempotency_minutes: float = 10.0
    """How long answers are kept for their Idempotency-Key."""
    idempotency_mb: float = 256.0
    """Memory for them, in 10^6 bytes; the oldest go first."""

    keys: str = "auto"
    """Whether requests need a key: auto asks for one unless Serve listens on loopback only."""
    keys_file: str = ""
    """File of hashed keys (`python -m serve.keys new NAME`); the variable DFMVR_SERVE_KEYS holds more."""
    requests_per_minute: float = 0.0
    """Of each key; 0 sets no limit."""
    page: bool = True
    """Serve the page at /."""

    def __post_init__(self) -> None:
        for name, choices in (("device", DEVICES), ("landmarks", FINDERS), ("keys", KEY_MODES)):
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        _require(self.min_replicas >= 1, "min_replicas", "at least 1", self.min_replicas)
        _require(
            self.max_replicas >= self.min_replicas,
            "max_replicas",
            f"at least min_replicas ({self.min_replicas})",
            self.max_replicas,
        )
        for name in ("max_batch_size", "threads", "queue", "max_batch_items"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        positive = (
            *("target_ongoing_requests", "cpus", "time_limit_s", "avatar_time_limit_s", "body_timeout_s"),
            *("max_body_mb", "max_megapixels", "idempotency_minutes", "idempotency_mb"),
        )
        for name in positive:
            _require(0 < getattr(self, name) < math.inf, name, "more than 0", getattr(self, name))
        for name in ("gpus", "batch_wait_ms", "requests_per_minute", "avatar_queue"):
            _require(0 <= getattr(self, name) < math.inf, name, "at least 0", getattr(self, name))
        digits = set("0123456789abcdef")
        valid = not self.model_hash or (len(self.model_hash) == 64 and set(self.model_hash) <= digits)
        _require(valid, "model_hash", "64 hexadecimal digits, or nothing", self.model_hash)


def parse_settings(values: Mapping[str, Any]) -> ServeSettings:
    """Return the settings of an application's `args`.

    Raises:
        SettingsError: a name does not exist (the near one is suggested), or a value is wrong.
    """
    texts = {field.name for field in fields(ServeSettings) if field.type == "str"}
    written = [f"{name}={_quoted(value) if name in texts else value}" for name, value in values.items()]
    return load_tree(ServeSettings, None, written)


def _quoted(value: object) -> str:
    """Quote the value of a text field: YAML would read 000 as a number and nothing as null."""
    return json.dumps("" if value is None else str(value), ensure_ascii=False)


def _require(condition: bool, field: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{field}: expected {expected}, got {got!r}")
