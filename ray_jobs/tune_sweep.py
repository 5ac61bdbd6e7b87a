"""A sweep and its folder: `<runs>/<id>/` with sweep.yaml, trials/<trial>/ (each a run), tune/ and the report.

The folder is a local path or an s3:// address. sweep.yaml holds all that is needed to go on, the settings of
the base among it: the files that the sweep was started from may change or vanish.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from dfmvr.config import Settings, load_settings, settings_dict, settings_from_dict, with_changes
from dfmvr.data import storage
from ray_jobs.runs import Run, RunError
from ray_jobs.tune_settings import TuneSettings, load_sweep_settings
from ray_jobs.tune_space import Point, Space, parse_space

SWEEP_FILE = "sweep.yaml"
ORDER_FILE = "order.json"


@dataclass(frozen=True)
class Sweep:
    """One sweep."""

    id: str
    uri: str
    """Its folder: an absolute local path or an s3:// address."""
    tune: TuneSettings
    bases: Mapping[str, Settings]
    """Settings that trials start from, by file; more than one where the space has a `config`."""

    @cached_property
    def space(self) -> Space:
        """What is searched."""
        return parse_space(self.tune.space)

    def path(self, *parts: str) -> str:
        """Address of something in the sweep's folder."""
        return storage.join(self.uri, *parts)

    def trial_order(self) -> list[str]:
        """Return the trials' ids in the order of their first start."""
        uri = self.path(ORDER_FILE)
        return list(json.loads(storage.read_bytes(uri))) if storage.exists(uri) else []

    def write_trial_order(self, trial_ids: Sequence[str]) -> None:
        """Keep the order, which Ray Tune forgets when a sweep goes on."""
        storage.write_bytes(self.path(ORDER_FILE), json.dumps(trial_ids).encode())

    def settings_at(self, point: Point) -> Settings:
        """Settings of a point, as the sweep's files would give them."""
        return self.space.settings_at(point, self.bases)

    def run(self, trial_id: str, point: Point, cpus_per_worker: float) -> Run:
        """Return the run of a trial.

        Args:
            trial_id: Ray Tune's; it survives a restart.
            point: of the space.
            cpus_per_worker: what its workers claim beside other trials'.
        """
        settings = self.settings_at(point)
        training = dataclasses.replace(
            settings.training, runs=self.path("trials"), cpus_per_worker=cpus_per_worker
        )
        return Run(trial_id, self.path("trials", trial_id), dataclasses.replace(settings, training=training))


def new_sweep(path: str, overrides: Sequence[str] = (), sweep_id: str | None = None) -> Sweep:
    """Read a sweep's file, check its space and name it; nothing is written yet.

    Args:
        path: of the file.
        overrides: `key=value` pairs for it.
        sweep_id: wanted id; None makes one of time, name and a random part.

    Raises:
        SettingsError: a file is wrong.
        SpaceError: the space does not fit the tree of settings.
        RunError: a sweep or run of that id exists.
    """
    tune = load_sweep_settings(path, overrides)
    space = parse_space(tune.space)
    if bool(tune.base) == bool(space.configs):
        both = "both" if tune.base else "neither"
        raise ValueError(
            f"{path}: expected either `base` or `space.config` to name settings files, got {both}"
        )
    bases = {
        file: with_changes(load_settings(Path(path).parent / file), tune.settings)
        for file in space.configs or (tune.base,)
    }
    space.check(bases)
    if tune.searcher == "grid":
        for point in space.grid():
            space.settings_at(point, bases)
    elif tune.try_base:
        space.point_of(bases)
    runs = next(iter(bases.values())).training.runs
    sweep_id = sweep_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{tune.name}-{secrets.token_hex(2)}"
    sweep = Sweep(sweep_id, storage.absolute(storage.join(runs, sweep_id)), tune, bases)
    for file in (SWEEP_FILE, "config.yaml"):
        if storage.exists(sweep.path(file)):
            raise RunError(
                f"{sweep.uri}: expected a new folder, but {file} is there; go on with --resume, "
                "or take another id"
            )
    return sweep


def write_sweep(sweep: Sweep) -> None:
    """Write sweep.yaml, from which the sweep is opened again."""
    content = {
        "sweep": dataclasses.asdict(sweep.tune),
        "bases": {name: settings_dict(base) for name, base in sweep.bases.items()},
    }
    storage.write_bytes(sweep.path(SWEEP_FILE), OmegaConf.to_yaml(OmegaConf.create(content)).encode())


def open_sweep(where: str, runs: str = "runs") -> Sweep:
    """Find an existing sweep.

    Args:
        where: the sweep's id, or the address of its folder.
        runs: folder of all runs, where `where` is an id.

    Raises:
        RunError: there is no such sweep.
    """
    candidates = [where] if "://" in where else [where, storage.join(runs, where)]
    found = [uri for uri in candidates if storage.exists(storage.join(uri, SWEEP_FILE))]
    if not found:
        raise RunError(f"there is no sweep {where!r}: expected {SWEEP_FILE} in one of {candidates}")
    uri = storage.absolute(found[0]).rstrip("/")
    text = storage.read_bytes(storage.join(uri, SWEEP_FILE)).decode()
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))
    bases = {name: settings_from_dict(base) for name, base in content["bases"].items()}
    return Sweep(uri.rpartition("/")[2], uri, TuneSettings(**content["sweep"]), bases)
