"""A run and its folder: `<runs>/<id>/` with config.yaml, metrics.json, checkpoints/, logs/ and model/.

The folder is a local path or an s3:// address. A new run always gets a new id; only `open_run` finds
an old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfmvr.config import Settings, dump_settings, load_settings
from dfmvr.data import storage
from dfmvr.networks.parser import SHIPPED
from dfmvr.training.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointError,
    TrainingState,
    check_files,
    parse_state,
    read_state,
)


class RunError(ValueError):
    """A run cannot be made or resumed; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    id: str
    uri: str
    """Its folder: an absolute local path or an s3:// address."""
    settings: Settings

    @property
    def checkpoints(self) -> str:
        """Address of the folder of checkpoints."""
        return storage.join(self.uri, "checkpoints")

    def path(self, *parts: str) -> str:
        """Address of something in the run's folder."""
        return storage.join(self.uri, *parts)


def new_run(settings: Settings, run_id: str | None = None) -> Run:
    """Name a new run; nothing is written yet.

    Args:
        settings: of the run.
        run_id: wanted id; None makes one of time, name and a random part.

    Raises:
        RunError: a run of that id exists.
    """
    run_id = run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.name}-{secrets.token_hex(2)}"
    run = Run(run_id, storage.absolute(storage.join(settings.training.runs, run_id)), settings)
    if storage.exists(run.path("config.yaml")):
        raise RunError(f"{run.uri}: this run exists; continue it with --resume {run_id}, or take another id")
    return run


def open_run(where: str, overrides: Sequence[str] = (), runs: str = "runs") -> Run:
    """Find an existing run, with changes to its settings; nothing is written.

    Args:
        where: the run's id, or the address of its folder.
        overrides: `key=value` pairs.
        runs: folder of all runs, where `where` is an id.

    Raises:
        RunError: there is no such run.
        SettingsError: an override is wrong.
    """
    candidates = [where] if "://" in where else [where, storage.join(runs, where)]
    found = [uri for uri in candidates if storage.exists(storage.join(uri, "config.yaml"))]
    if not found:
        raise RunError(f"there is no run {where!r}: expected config.yaml in one of {candidates}")
    uri = storage.absolute(found[0])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "config.yaml"
        copy.write_bytes(storage.read_bytes(storage.join(uri, "config.yaml")))
        settings = load_settings(copy, overrides)
    return Run(uri.rstrip("/").rpartition("/")[2], uri, settings)


def write_settings(run: Run) -> None:
    """Write the run's config.yaml, from which it is opened again."""
    storage.write_bytes(run.path("config.yaml"), dump_settings(run.settings).encode())


def write_metrics(run: Run, metrics: dict[str, Any]) -> None:
    """Write the training's part of metrics.json, keeping what other jobs wrote there."""
    uri = run.path("metrics.json")
    content = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    content["training"] = metrics
    storage.write_bytes(uri, (json.dumps(content, indent=2) + "\n").encode())


def checkpoint_names(checkpoints: str) -> list[str]:
    """Names of the finished checkpoints in a folder, oldest first."""
    names = [uri.rpartition("/")[2] for uri in storage.list_folders(checkpoints)]
    return [name for name in names if storage.exists(storage.join(checkpoints, name, MANIFEST_FILE))]


def checkpoint_state(checkpoints: str, name: str) -> TrainingState:
    """Read only the state of a checkpoint.

    Raises:
        CheckpointError: it is not a checkpoint's state.
    """
    uri = storage.join(checkpoints, name, STATE_FILE)
    try:
        return parse_state(storage.read_bytes(uri).decode())
    except (CheckpointError, FileNotFoundError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{uri}: {error}") from error


def checkpoint_states(checkpoints: str) -> list[tuple[str, TrainingState]]:
    """Names and states of the finished checkpoints, oldest first, without those whose state is damaged."""
    states = []
    for name in checkpoint_names(checkpoints):
        with contextlib.suppress(CheckpointError):  # told where it would be resumed from
            states.append((name, checkpoint_state(checkpoints, name)))
    return states


def newest_state(checkpoints: str) -> TrainingState | None:
    """State of the newest finished checkpoint, or None."""
    states = checkpoint_states(checkpoints)
    return states[-1][1] if states else None


def best_checkpoint(checkpoints: str) -> tuple[str, TrainingState] | None:
    """The stored checkpoint with the lowest validation loss; the newest where none has been validated."""
    states = checkpoint_states(checkpoints)
    validated = [item for item in states if math.isfinite(item[1].validation.get("val_loss", math.nan))]
    if validated:
        return min(validated, key=lambda item: item[1].validation["val_loss"])
    return states[-1] if states else None


def store_checkpoint(folder: Path, checkpoints: str, name: str) -> None:
    """Copy a local checkpoint folder to storage, the manifest last.

    Raises:
        StorageError: the storage goes on failing.
    """
    for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST_FILE):
        storage.write_bytes(storage.join(checkpoints, name, file.name), file.read_bytes())


def fetch_checkpoint(checkpoints: str, name: str, folder: Path) -> None:
    """Copy a stored checkpoint to a local folder and compare it with its manifest.

    Raises:
        CheckpointError: it is unfinished or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for uri in storage.list_files(storage.join(checkpoints, name)):
        (folder / uri.rpartition("/")[2]).write_bytes(storage.read_bytes(uri))
    check_files(folder)


def newest_intact_checkpoint(checkpoints: str) -> tuple[str | None, list[str]]:
    """Find the newest checkpoint whose files agree with its manifest.

    Returns:
        Its name (None where there is none), and the reasons why newer ones were passed over.
    """
    reasons: list[str] = []
    for name in reversed(checkpoint_names(checkpoints)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                fetch_checkpoint(checkpoints, name, Path(folder))
                read_state(folder)
            except CheckpointError as error:
                reasons.append(f"{name}: {error}")
            else:
                return name, reasons
    return None, reasons


def upload_folder(folder: Path, uri: str) -> None:
    """Copy all files of a local folder, with its subfolders."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            storage.write_bytes(storage.join(uri, *file.relative_to(folder).parts), file.read_bytes())


def with_absolute_data(settings: Settings) -> Settings:
    """Return the settings with local paths of data and parser made absolute: workers run in other folders."""
    data, parser = settings.data, settings.parser

    def absolute(place: str) -> str:
        return place if place in ("", SHIPPED) else storage.absolute(place)

    return dataclasses.replace(
        settings,
        data=dataclasses.replace(data, uri=storage.absolute(data.uri)),
        parser=dataclasses.replace(
            parser, celebamask_hq=absolute(parser.celebamask_hq), weights=absolute(parser.weights)
        ),
    )
