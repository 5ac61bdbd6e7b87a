"""What `ray_jobs.submit` checks before a job is sent: better known in seconds here than in minutes there."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from dfmvr.config import Settings, load_settings
from dfmvr.data import storage
from dfmvr.data.manifest import read_manifest
from dfmvr.morphable.io import DEFAULT_MODEL, read_model_file
from dfmvr.networks.parser import SHIPPED
from dfmvr.networks.weights import CARD_FILE
from ray_jobs.runs import Run, newest_state
from ray_jobs.scaling import preflight

EXCLUDES = ("/data/", "/runs/", ".venv", ".env", ".env.*", "*.pem", "*.key", ".aws")
"""Never sent, whatever .gitignore and .rayignore say: big things and secrets."""
MAX_BYTES = 100 * 2**20
"""Of the folder; Ray's own limit for an upload."""
_LARGEST = 5


class SubmitError(ValueError):
    """The job would fail on the cluster; the message says why and what to change."""


@dataclass(frozen=True)
class Demand:
    """What a job needs of the cluster and of storage."""

    settings: tuple[Settings, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)
    """Name of a setting or an option -> data set that must be there."""
    lists: Mapping[str, str] = field(default_factory=dict)
    """Likewise, folders that must hold something."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """Likewise, folders that are written to."""
    travels: Mapping[str, str] = field(default_factory=dict)
    """Likewise, files and folders that may be sent along; empty ones are not used."""
    face_model_hash: str = ""
    """Of the face model that an existing network was trained with."""
    claims: tuple[Callable[[Mapping[str, float]], object], ...] = ()
    """Each takes the cluster's resources and raises PreflightError where they can never do."""


def parse_job(job: str, arguments: list[str]) -> argparse.Namespace:
    """Parse a job's arguments as the job itself will; a mistake ends the process with exit code 2.

    Raises:
        SubmitError: an option makes no sense for a job that is sent.
    """
    module = importlib.import_module(f"ray_jobs.{job}")
    parsed: argparse.Namespace = (
        module.parse(arguments) if hasattr(module, "parse") else module._parser().parse_args(arguments)
    )
    if parsed.address:
        raise SubmitError(
            f"--address {parsed.address}: expected before {job}: the job runs where it is sent to"
        )
    if getattr(parsed, "dry_run", False):
        raise SubmitError("--dry-run needs no cluster; run it here: python -m ray_jobs.train ... --dry-run")
    return parsed


def check_files(folder: Path, parsed: argparse.Namespace) -> dict[str, int]:
    """Check the folder that is sent; return its files' sizes by path.

    Raises:
        SubmitError: it is not the project's, is too large, or lacks the configuration file.
    """
    if not (folder / "ray_jobs" / "train.py").is_file():
        raise SubmitError(
            f"{folder}: expected the project's folder (with ray_jobs/), which is sent to the cluster"
        )
    files = files_to_send(folder)
    total = sum(files.values())
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda name: -files[name])[:_LARGEST]
        named = ", ".join(f"{name} ({files[name] / 2**20:.1f} MiB)" for name in largest)
        raise SubmitError(
            f"{folder}: expected at most {MAX_BYTES // 2**20} MiB to send, got {total / 2**20:.0f} MiB; the "
            f"largest files: {named}; .rayignore leaves files out"
        )
    if getattr(parsed, "config", None):
        check_travels("--config", parsed.config, files)
    return files


def files_to_send(folder: Path) -> dict[str, int]:
    """Return path and size of every file that Ray would send, by Ray's own walk over the folder."""
    files: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = _get_excludes(folder, [*get_runtime_env_default_excludes(), *EXCLUDES])
    follow_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(folder, [excludes], note, include_gitignore=follow_git)
    return files


def demand(job: str, parsed: argparse.Namespace) -> Demand:
    """Read the job's settings, and say what it needs.

    Raises:
        SubmitError: a place is relative, and would vanish with the job's copy of the folder.
        SettingsError: the settings are wrong.
        RunError: a run exists already, or does not.
        StorageError: object storage cannot be read.
    """
    match job:
        case "train" | "pretrain_parser":
            return _demand_of_training(job, parsed)
        case "tune":
            return _demand_of_sweep(parsed)
        case "evaluate":
            return _demand_of_evaluation(parsed)
        case "preprocess":
            settings = load_settings(parsed.config, parsed.overrides)
            weights = {"preprocess.parser_weights": settings.preprocess.parser_weights}
            return Demand(
                (settings,), lists={"--root": parsed.root}, writes={"--out": parsed.out}, travels=weights
            )
        case _:
            settings = load_settings(parsed.config, parsed.overrides)
            out = {"--out": parsed.out} if parsed.out else {"data.uri": settings.data.uri}
            return Demand((settings,), writes=out)


def check_storage(demand: Demand, files: Collection[str]) -> None:
    """Check every place of a job, and the face model of a network that exists already.

    Raises:
        SubmitError: a place is relative, a file is not sent along, or the face model is another.
        OSError: object storage cannot be reached, read or written.
        ValueError: a data set is damaged.
    """
    check_lasting({**demand.writes, **demand.reads, **demand.lists})
    for name, path in demand.travels.items():
        check_travels(name, path, files)
    for settings in demand.settings:
        check_travels("face_model.path", settings.face_model.path, files)
        _check_face_model(settings.face_model.path, demand.face_model_hash)
    for uri in filter(_is_object, demand.writes.values()):
        storage.check_writable(uri)
    for uri in filter(_is_object, demand.reads.values()):
        read_manifest(uri)
    for name, uri in demand.lists.items():
        if _is_object(uri) and not (storage.list_folders(uri) or storage.list_files(uri)):
            raise SubmitError(f"{name} {uri}: expected files, found none")


def check_resources(demand: Demand, resources: Mapping[str, float]) -> None:
    """Check that the cluster can ever run a job.

    Args:
        demand: of the job.
        resources: of the whole cluster, used or not.

    Raises:
        SubmitError: it has no CPU for tasks.
        PreflightError: it is too small, and the job would wait for ever.
    """
    if resources.get("CPU", 0.0) < 1:
        raise SubmitError(f"expected a cluster of at least 1 CPU, got {resources.get('CPU', 0.0):g}")
    for claim in demand.claims:
        claim(resources)


def check_lasting(places: Mapping[str, str]) -> None:
    """Check that places, by the name of their setting or option, outlive the job.

    Raises:
        SubmitError: some are relative.
    """
    lost = [
        f"{name}={uri}" for name, uri in places.items() if not (_is_object(uri) or Path(uri).is_absolute())
    ]
    if lost:
        raise SubmitError(
            f"expected s3://... or an absolute path that every node has, got {', '.join(lost)}: that lies in "
            "the job's copy of this folder, which has no data or runs and is deleted"
        )


def check_travels(name: str, path: str, files: Collection[str]) -> None:
    """Check that a file or folder is sent along, or lies in a place that does not move.

    Raises:
        SubmitError: it is neither.
    """
    if not path or _is_object(path) or (Path(path).is_absolute() and name != "--config"):
        return
    place = os.path.normpath(path)
    if place not in files and not any(file.startswith(f"{place}/") for file in files):
        raise SubmitError(
            f"{name}: expected what is sent along with this folder (no data or runs, nothing that .rayignore "
            f"or .gitignore names), got {path!r}"
        )


def within(seconds: float, task: Callable[[], None], told: str) -> None:
    """Run a task in a thread, and give it up when its time is over.

    Raises:
        SubmitError: it has not ended; `told` says why.
        Exception: the task's own.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise SubmitError(f"{told} within {seconds:g} s")
    if failures:
        raise failures[0]


def _demand_of_training(job: str, parsed: argparse.Namespace) -> Demand:
    from ray_jobs import pretrain_parser, train

    if parsed.resume:
        check_lasting({"--resume": parsed.resume})
        if not _is_here(parsed.resume):
            return Demand()
    run: Run = (train if job == "train" else pretrain_parser).choose_run(parsed)
    settings = run.settings
    celebamask_hq = settings.parser.celebamask_hq if job == "pretrain_parser" else ""
    state = newest_state(run.checkpoints) if parsed.resume and job == "train" else None
    weights = settings.parser.weights
    return Demand(
        (settings,),
        reads={} if celebamask_hq else {"data.uri": settings.data.uri},
        writes={"--resume": parsed.resume} if parsed.resume else {"training.runs": settings.training.runs},
        travels={
            "parser.celebamask_hq": celebamask_hq,
            "parser.weights": "" if weights == SHIPPED else weights,
        },
        face_model_hash=state.face_model_hash if state else "",
        claims=(partial(preflight, settings.training),),
    )


def _demand_of_sweep(parsed: argparse.Namespace) -> Demand:
    from ray_jobs.tune_sweep import new_sweep, open_sweep
    from ray_jobs.tune_trial import worker_cpus

    if parsed.resume:
        check_lasting({"--resume": parsed.resume})
        if not _is_here(parsed.resume):
            return Demand()
        sweep = open_sweep(parsed.resume)
    else:
        sweep = new_sweep(parsed.config, parsed.overrides, parsed.sweep_id)
    bases, made = tuple(sweep.bases.values()), sweep.tune.make_data
    data = {f"settings.data.uri ({file})": base.data.uri for file, base in sweep.bases.items()}
    return Demand(
        bases,
        reads={} if made else data,
        writes={"settings.training.runs": bases[0].training.runs} | (data if made else {}),
        claims=tuple(partial(worker_cpus, base.training, sweep.tune.concurrent) for base in bases),
    )


def _demand_of_evaluation(parsed: argparse.Namespace) -> Demand:
    from ray_jobs import evaluate

    where, name = (parsed.run, "--run") if parsed.run else (parsed.model, "--model")
    shipped = where == evaluate.SHIPPED
    if parsed.run:
        check_lasting({name: where})
    if parsed.out:
        check_lasting({"--out": parsed.out})
    if not shipped and not _is_here(where):
        return Demand()
    task = evaluate.plan(parsed, [])
    card = storage.join(task.model, CARD_FILE)
    return Demand(
        (task.settings,),
        reads={"data.uri": task.settings.data.uri},
        writes={"--out" if parsed.out else "--run": task.out},
        travels={} if shipped or parsed.run else {name: where},
        face_model_hash=json.loads(storage.read_bytes(card))["face_model_hash"],
    )


def _check_face_model(path: str, expected: str) -> None:
    """Compare a face model with the one that a network was trained with, where both can be known here."""
    place = Path(path) if path else DEFAULT_MODEL
    if not expected or not place.is_file():
        return
    got = str(read_model_file(place)["hash"])
    if got != expected:
        raise SubmitError(
            f"face_model.path {path or '(shipped)'}: expected face model {expected}, which the network was "
            f"trained with, got {got}"
        )


def _is_object(uri: str) -> bool:
    return "://" in uri


def _is_here(uri: str) -> bool:
    """Whether a place can be looked at from this machine: a cluster's own folders cannot."""
    return _is_object(uri) or Path(uri).exists()
