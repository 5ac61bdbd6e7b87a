"""The space of a sweep: which settings are searched, between which values, under which condition.

In YAML, by the setting's name:

    losses.photo: {log_uniform: [2, 200]}          a positive number, all scales alike
    losses.landmarks_3d: {uniform: [0, 4]}
    training.accumulate: {int_uniform: [1, 4]}     both ends included
    network.name: {choice: [cnn_rednet, unet_rednet]}
    network.landmark_maps: {choice: [true, false], when: {network.name: unet_rednet}}

`config: {choice: [a.yaml, b.yaml]}` searches among whole settings files. A setting with `when` is searched
only in points that have that value (or one of a list); elsewhere the base's own stands.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from dfmvr.config import Settings, SettingsError, settings_dict, with_changes

Scalar = bool | int | float | str | None
Point = dict[str, Scalar]
"""A place in the space: value by name of a setting."""
CONFIG = "config"
"""The name that stands for a whole settings file."""
_RANGES = ("uniform", "log_uniform", "int_uniform")
_KINDS = (*_RANGES, "choice")


class SpaceError(ValueError):
    """A space cannot be searched; the message names the setting and what was expected."""


class Source(Protocol):
    """What values come from: an Optuna trial, or a test's stand-in."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a value between `low` and `high`."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a whole number between `low` and `high`, both included."""

    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar:
        """Return one of the choices."""


@dataclass(frozen=True)
class Dimension:
    """One searched setting."""

    name: str
    kind: str
    """`uniform`, `log_uniform`, `int_uniform` or `choice`."""
    low: float = math.nan
    high: float = math.nan
    choices: tuple[Scalar, ...] = ()
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """Other dimension -> values with which this one is searched."""

    def is_active(self, point: Point) -> bool:
        """Whether this setting is searched at a point whose earlier dimensions are known."""
        return all(name in point and point[name] in values for name, values in self.when.items())

    def suggest(self, source: Source) -> Scalar:
        """Take a value from a source."""
        match self.kind:
            case "choice":
                return source.suggest_categorical(self.name, self.choices)
            case "int_uniform":
                return source.suggest_int(self.name, int(self.low), int(self.high))
            case _:
                return source.suggest_float(self.name, self.low, self.high, log=self.kind == "log_uniform")

    def contains(self, value: Scalar) -> bool:
        """Whether a value lies in the range, or is one of the choices."""
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def probes(self) -> tuple[Scalar, ...]:
        """Values that stand for all: the choices, or both ends."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int_uniform" else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """All searched settings, those that others depend on first."""

    dimensions: tuple[Dimension, ...]

    @property
    def configs(self) -> tuple[str, ...]:
        """The settings files searched among; none where all trials start from one base."""
        return tuple(str(choice) for d in self.dimensions if d.name == CONFIG for choice in d.choices)

    def suggest(self, source: Source) -> Point:
        """Take a point from a source; conditional settings only where their condition holds."""
        return self._walk(lambda dimension: dimension.suggest(source))

    def grid(self) -> list[Point]:
        """Return all combinations.

        Raises:
            SpaceError: a dimension is no choice.
        """
        points: list[Point] = [{}]
        for dimension in self.dimensions:
            if dimension.kind != "choice":
                raise SpaceError(
                    f"space.{dimension.name}: expected `choice` for a grid, got `{dimension.kind}`"
                )
            points = [
                grown
                for point in points
                for grown in (
                    [{**point, dimension.name: choice} for choice in dimension.choices]
                    if dimension.is_active(point)
                    else [point]
                )
            ]
        return points

    def point_of(self, bases: Mapping[str, Settings]) -> Point:
        """Return where the base itself lies; the first of several.

        Raises:
            SpaceError: it lies outside.
        """
        first, base = next(iter(bases.items()))

        def own(dimension: Dimension) -> Scalar:
            value = first if dimension.name == CONFIG else cast(Scalar, setting(base, dimension.name))
            if not dimension.contains(value):
                raise SpaceError(
                    f"space.{dimension.name}: expected a range with the base's own value, {value}, which "
                    "the first trial tries; widen it, or set try_base=false"
                )
            return value

        return self._walk(own)

    def settings_at(self, point: Point, bases: Mapping[str, Settings]) -> Settings:
        """Return the settings of a point.

        Args:
            point: of this space.
            bases: settings by file, as `configs` names them; a single one under any name otherwise.

        Raises:
            SettingsError: its values do not go together.
        """
        base = bases[str(point[CONFIG])] if CONFIG in point else next(iter(bases.values()))
        return with_changes(base, {name: value for name, value in point.items() if name != CONFIG})

    def check(self, bases: Mapping[str, Settings]) -> None:
        """Compare the space with the tree of settings: every name exists, every value fits.

        Raises:
            SpaceError: a value does not fit; a name that does not exist comes with the near one.
        """
        for base in bases.values():
            for dimension in self.dimensions:
                if dimension.name != CONFIG:
                    _check_dimension(dimension, base)

    def _walk(self, value_of: Callable[[Dimension], Scalar]) -> Point:
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.is_active(point):
                point[dimension.name] = value_of(dimension)
        return point


def parse_space(content: Mapping[str, Any]) -> Space:
    """Read a space from YAML's content.

    Raises:
        SpaceError: it is not written as the module says.
    """
    dimensions: dict[str, Dimension] = {}
    for name, value in content.items():
        dimensions[str(name)] = _parse_dimension(str(name), value, dimensions)
    return Space(tuple(dimensions.values()))


def setting(settings: Settings, name: str) -> Any:
    """Return a setting's value by its name with dots."""
    value: Any = settings_dict(settings)
    for part in name.split("."):
        value = value[part]
    return value


def _parse_dimension(name: str, content: Any, earlier: Mapping[str, Dimension]) -> Dimension:
    kinds = [kind for kind in _KINDS if isinstance(content, Mapping) and kind in content]
    if len(kinds) != 1 or set(content) - {*kinds, "when"}:
        raise SpaceError(
            f"space.{name}: expected one of {', '.join(_KINDS)}, and perhaps `when`, got {content}"
        )
    kind, value = kinds[0], content[kinds[0]]
    when = _parse_when(name, content.get("when", {}), earlier)
    if kind == "choice":
        scalars = isinstance(value, list) and all(isinstance(v, Scalar) for v in value)
        if not scalars or not value or len(set(map(repr, value))) < len(value):
            raise SpaceError(f"space.{name}: expected a list of different single values, got {value}")
        return Dimension(name, kind, choices=tuple(value), when=when)
    numbers = isinstance(value, list) and len(value) == 2 and all(_is_number(v) for v in value)
    least = "0 < low < high" if kind == "log_uniform" else "low < high"
    if not numbers or not value[0] < value[1] or (kind == "log_uniform" and value[0] <= 0):
        raise SpaceError(f"space.{name}: expected {kind}: [low, high] with {least}, got {value}")
    if kind == "int_uniform" and not all(isinstance(v, int) for v in value):
        raise SpaceError(f"space.{name}: expected whole numbers, got {value}")
    return Dimension(name, kind, float(value[0]), float(value[1]), when=when)


def _parse_when(name: str, content: Any, earlier: Mapping[str, Dimension]) -> dict[str, tuple[Scalar, ...]]:
    if not isinstance(content, Mapping):
        raise SpaceError(f"space.{name}.when: expected `setting: value`, got {content}")
    when = {}
    for other, value in content.items():
        choices = earlier[other].choices if other in earlier else ()
        if not choices:
            near = difflib.get_close_matches(str(other), earlier, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SpaceError(f"space.{name}.when: expected a `choice` written above it, got {other!r}{hint}")
        values = tuple(value) if isinstance(value, list) else (value,)
        if strange := [v for v in values if v not in choices]:
            raise SpaceError(f"space.{name}.when.{other}: expected some of {list(choices)}, got {strange}")
        when[str(other)] = values
    return when


def _check_dimension(dimension: Dimension, base: Settings) -> None:
    name = dimension.name
    with contextlib.suppress(KeyError, TypeError):  # no such setting: the first probe tells the near name
        _check_kind(dimension, setting(base, name))
    for probe in dimension.probes:
        try:
            with_changes(base, {name: probe})
        except SettingsError as error:
            reason = str(error).removeprefix("settings: ").removeprefix(f"{name}: ")
            raise SpaceError(f"space.{name}: {reason}") from error


def _check_kind(dimension: Dimension, own: Any) -> None:
    if isinstance(own, dict):
        raise SpaceError(
            f"space.{dimension.name}: expected a single setting, got the group of {', '.join(own)}"
        )
    ranges = ("int_uniform",) if isinstance(own, int) else ("uniform", "log_uniform")
    kinds = (*(ranges if _is_number(own) else ()), "choice")
    if dimension.kind not in kinds:
        raise SpaceError(
            f"space.{dimension.name}: expected {' or '.join(kinds)} for values such as {own!r}, got "
            f"{dimension.kind}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
