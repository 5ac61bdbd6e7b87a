"""The typed tree of settings: each room's settings, composed, overridden, checked and written back.

A configuration file is YAML. It may name another file to start from (`extends: quickstart.yaml`, relative to
itself), so that a variant is the few lines that change. Overrides are `key=value` pairs with dots
(`losses.photo=12`). Every key must exist in the tree below; values are converted to the field's type and
validated by the room that owns them.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from dfmvr.data.datasets.synthetic import SyntheticSettings
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.settings import DataSettings
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.losses.total import LossSettings
from dfmvr.morphable.model import FaceModelSettings
from dfmvr.networks.parser import ParserSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.training.optim import OptimiserSettings
from dfmvr.training.step import TrainingSettings

Tree = TypeVar("Tree")


class SettingsError(ValueError):
    """A configuration file or an override is wrong; the message names it and what was expected."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run."""

    name: str = "run"
    """Short name of the configuration; part of a run's id."""
    seed: int = 0
    """Seed of data generation, initial weights, shuffling and augmentation."""
    data: DataSettings = field(default_factory=DataSettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    face_model: FaceModelSettings = field(default_factory=FaceModelSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    parser: ParserSettings = field(default_factory=ParserSettings)


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Compose settings from a file and overrides.

    Args:
        path: YAML file; None means the defaults.
        overrides: `key=value` pairs, applied last, in order.

    Raises:
        SettingsError: the file is missing or not YAML, a key does not exist (the near name is suggested), or
            a value has the wrong type or fails its room's validation.
    """
    return load_tree(Settings, path, overrides)


def load_tree(schema: type[Tree], path: str | Path | None, overrides: Sequence[str]) -> Tree:
    """Compose another typed tree (a frozen dataclass) as `load_settings` composes `Settings`.

    Raises:
        SettingsError: as `load_settings`.
    """
    tree = _writable(OmegaConf.structured(schema))
    for layer, source in _file_layers(path):
        tree = _merge(tree, layer, source)
    for override in overrides:
        if "=" not in override:
            raise SettingsError(f"override {override!r}: expected key=value")
        tree = _merge(tree, OmegaConf.from_dotlist([override]), f"override {override!r}")
    try:
        return cast(Tree, OmegaConf.to_object(tree))
    except (ValueError, TypeError, OmegaConfBaseException) as error:
        raise SettingsError(f"{path or 'settings'}: {_first_line(error)}") from error


def dump_settings(settings: Settings) -> str:
    """Return the settings as YAML that `load_settings` reads back to an equal tree."""
    return OmegaConf.to_yaml(OmegaConf.create(settings_dict(settings)))


def settings_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain dictionaries, lists and scalars (for JSON)."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(settings))))


def settings_from_dict(values: dict[str, Any]) -> Settings:
    """Rebuild settings from `settings_dict`'s result.

    Raises:
        SettingsError: as `load_settings`.
    """
    tree = _merge(_writable(OmegaConf.structured(Settings)), OmegaConf.create(values), "settings")
    try:
        return cast(Settings, OmegaConf.to_object(tree))
    except (ValueError, TypeError, OmegaConfBaseException) as error:
        raise SettingsError(f"settings: {_first_line(error)}") from error


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with other values.

    Args:
        settings: to start from.
        changes: value, or mapping of values, by name; names may have dots (`losses.photo`).

    Raises:
        SettingsError: as `load_settings`.
    """
    tree = OmegaConf.create(settings_dict(settings))
    for name, value in changes.items():
        try:
            OmegaConf.update(tree, name, value, merge=True)
        except OmegaConfBaseException as error:
            raise SettingsError(f"{name}: {_first_line(error)}") from error
    return settings_from_dict(cast(dict[str, Any], OmegaConf.to_container(tree)))


def config_hash(settings: Any) -> str:
    """Return 16 hex digits that change when any field of the settings (or of a part of them) changes."""
    canonical = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _file_layers(path: str | Path | None) -> list[tuple[DictConfig, str]]:
    """Read a file and those it extends, base first."""
    layers: list[tuple[DictConfig, str]] = []
    seen: set[Path] = set()
    current = None if path is None else Path(path)
    while current is not None:
        resolved = current.resolve()
        if resolved in seen:
            raise SettingsError(f"{current}: extends itself through {[source for _, source in layers]}")
        seen.add(resolved)
        try:
            content = OmegaConf.load(current)
        except FileNotFoundError:
            raise SettingsError(f"{current}: no such configuration file") from None
        except Exception as error:  # yaml raises many kinds; each is told with the file's name
            raise SettingsError(f"{current}: not readable as YAML: {_first_line(error)}") from error
        if not isinstance(content, DictConfig):
            raise SettingsError(f"{current}: expected a mapping of settings, got {type(content).__name__}")
        base = content.pop("extends", None)
        layers.append((content, str(current)))
        current = None if base is None else current.parent / str(base)
    return layers[::-1]


def _merge(tree: DictConfig, layer: DictConfig | ListConfig, source: str) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.merge(tree, layer))
    except ConfigKeyError as error:
        key = str(error.full_key)
        hint = _near_name(tree, key)
        raise SettingsError(f"{source}: there is no setting {key!r}{hint}") from error
    except (ValidationError, OmegaConfBaseException) as error:
        raise SettingsError(f"{source}: {error.full_key}: {_first_line(error)}") from error


def _near_name(tree: DictConfig, key: str) -> str:
    names = list(_leaf_names(tree))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _leaf_names(node: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key in map(str, node):
        child = node._get_node(key)
        names.append(f"{prefix}{key}")
        if isinstance(child, DictConfig):
            names += _leaf_names(child, f"{prefix}{key}.")
    return names


def _writable(node: Any) -> Any:
    """Lift the read-only flag that OmegaConf puts on frozen dataclasses, so that files can be merged in."""
    OmegaConf.set_readonly(node, None)
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if OmegaConf.is_config(child):
            _writable(child)
    return node


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
