"""Settings of a sweep: what is searched, in which way, for which figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfmvr.config import load_tree

SEARCHERS = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "median", "none")
OBJECTIVES = {
    "val_dense_mm": "validation error, mm: distance of corresponding vertices after rigid alignment",
    "step_ms": "computing time of a training step, ms",
}
_NO_PBT = (
    "sweep.scheduler: expected one of asha, median, none, got 'pbt': its exploiting copies Ray Tune's "
    "checkpoints between trials, but a trial here is a whole Ray Train run that keeps its own, so that pbt "
    "would silently do nothing"
)


@dataclass(frozen=True)
class TuneSettings:
    """A sweep; its YAML may start from another sweep's with `extends`, as all settings can."""

    name: str = "sweep"
    """Short name; part of the sweep's id."""
    base: str = ""
    """Settings file that all trials start from, relative to the sweep's file."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the base in all trials."""
    space: dict[str, Any] = field(default_factory=dict)
    """What is searched: name of a setting -> how its values are drawn (tune_space.py)."""
    searcher: str = "tpe"
    """Where the next point comes from: `tpe` (Optuna, learns from the trials before), `random`, or `grid`
    (all combinations of choices)."""
    trials: int = 16
    """Points to try; a grid has as many as it has."""
    try_base: bool = True
    """Let the first trial be the base as it is, which the others have to beat; not for a grid."""
    seed: int = 0
    """Seed of the searcher (that of the trials is a setting of theirs)."""
    scheduler: str = "asha"
    """Which trials end early: `asha` (those outside the best 1 / reduction at epochs grace_epochs x
    reduction^k), `median` (those worse than the median so far), or `none`."""
    grace_epochs: int = 1
    """Epochs that every trial gets."""
    reduction: float = 3.0
    """See `scheduler`."""
    objectives: tuple[str, ...] = ("val_dense_mm",)
    """Figures to make small. With two, best.yaml is the trial with the lowest first one; the scheduler looks
    at the first alone."""
    concurrent: int = 1
    """Trials that run at the same time."""
    make_data: bool = False
    """Render the synthetic data set where data.uri has none yet."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if self.scheduler == "pbt":
            raise ValueError(_NO_PBT)
        for name, choices in (("searcher", SEARCHERS), ("scheduler", SCHEDULERS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"sweep.{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("trials", "grace_epochs", "concurrent"):
            if getattr(self, name) < 1:
                raise ValueError(f"sweep.{name}: expected >= 1, got {getattr(self, name)}")
        if self.reduction <= 1:
            raise ValueError(f"sweep.reduction: expected > 1, got {self.reduction}")
        if not self.space:
            raise ValueError("sweep.space: expected at least one setting to search, got none")
        known = set(self.objectives) <= set(OBJECTIVES)
        if not known or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(
                f"sweep.objectives: expected some of {', '.join(OBJECTIVES)}, each once, got "
                f"{', '.join(self.objectives) or 'none'} (no loss: its weights may be searched)"
            )


def load_sweep_settings(path: str | Path, overrides: Sequence[str] = ()) -> TuneSettings:
    """Read a sweep's file, with `key=value` overrides.

    Raises:
        SettingsError: as `load_settings`.
    """
    return load_tree(TuneSettings, path, overrides)
