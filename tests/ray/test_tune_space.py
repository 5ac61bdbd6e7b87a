"""What is checked before a sweep starts anything: its file, its space, the settings of its points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dfmvr.config import Settings, SettingsError, dump_settings, load_settings
from ray_jobs.runs import RunError
from ray_jobs.tune_settings import TuneSettings
from ray_jobs.tune_space import CONFIG, Scalar, Space, SpaceError, parse_space
from ray_jobs.tune_sweep import Sweep, new_sweep, open_sweep, write_sweep

CONFIGS = Path(__file__).parents[2] / "configs" / "tune"
CONDITIONAL = {
    "network.name": {"choice": ["mulen_unet_rednet", "cnn_rednet"]},
    "network.landmark_maps": {"choice": [True, False], "when": {"network.name": "mulen_unet_rednet"}},
    "seed": {"choice": [0, 1, 2]},
}


class Ends:
    """A source that answers with the lower end, or with the choice of a given place."""

    def __init__(self, place: int = 0) -> None:
        self.place = place
        self.asked: list[tuple[object, ...]] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append((name, low, high, log))
        return low

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked.append((name, low, high))
        return low

    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar:
        self.asked.append((name, *choices))
        return choices[self.place]


def write(folder: Path, text: str) -> str:
    (folder / "base.yaml").write_text(f"training: {{runs: {folder}/runs}}\n")
    (folder / "sweep.yaml").write_text(text)
    return str(folder / "sweep.yaml")


def check(space: Mapping[str, Any]) -> Space:
    parsed = parse_space(space)
    parsed.check({"base": Settings()})
    return parsed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_fits_the_tree(path: Path) -> None:
    sweep = new_sweep(str(path))
    assert sweep.tune.name == path.stem
    assert sweep.settings_at(sweep.space.suggest(Ends(-1))) != next(iter(sweep.bases.values()))


def test_the_shipped_spaces_search_what_they_are_named_for() -> None:
    losses = new_sweep(str(CONFIGS / "loss_weights.yaml")).space
    assert [dimension.name.removeprefix("losses.") for dimension in losses.dimensions] == [
        *["photo", "mask", "landmarks_2d", "landmarks_3d"],
        *["identity_prior", "expression_prior", "albedo_prior"],
    ]
    points = (ablation := new_sweep(str(CONFIGS / "ablation.yaml"))).space.grid()
    names = [f"v{number}" for number in range(1, 7)]
    assert [(ablation.settings_at(p).name, p["seed"]) for p in points] == [
        (n, s) for n in names for s in range(3)
    ]


def test_each_kind_asks_its_source() -> None:
    space = check(
        {
            "losses.photo": {"log_uniform": [2, 200]},
            "losses.mask": {"uniform": [0.5, 4]},
            "training.accumulate": {"int_uniform": [1, 4]},
            "data.augment": {"choice": [True, False]},
        }
    )
    source = Ends()
    point = space.suggest(source)
    assert point == {
        "losses.photo": 2, "losses.mask": 0.5, "training.accumulate": 1, "data.augment": True,
    }  # fmt: skip
    assert source.asked == [
        ("losses.photo", 2, 200, True), ("losses.mask", 0.5, 4, False), ("training.accumulate", 1, 4),
        ("data.augment", True, False),
    ]  # fmt: skip
    settings = space.settings_at(point, {"base": Settings()})
    assert (settings.losses.photo, settings.losses.mask, settings.training.accumulate) == (2.0, 0.5, 1)


def test_a_conditional_setting_is_searched_only_where_its_condition_holds() -> None:
    space = check(CONDITIONAL)
    assert space.suggest(Ends(0)).keys() == CONDITIONAL.keys()
    assert space.suggest(Ends(1)) == {"network.name": "cnn_rednet", "seed": 1}
    points = space.grid()
    assert len(points) == len({str(point) for point in points}) == (2 + 1) * 3


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"losses.foto": {"uniform": [1, 2]}},
            r"losses\.foto: there is no setting .*did you mean 'losses\.photo'",
        ),
        ({"losses": {"choice": [1, 2]}}, r"space\.losses: "),
        ({"losses.photo": {"uniform": [-1, 2]}}, r"losses\.photo: .*at least 0, got -1"),
        ({"losses.photo": {"log_uniform": [0, 2]}}, r"with 0 < low < high, got \[0, 2\]"),
        ({"losses.photo": {"uniform": [2, 1]}}, r"with low < high, got \[2, 1\]"),
        ({"losses.photo": {"loguniform": [1, 2]}}, "expected one of uniform, log_uniform, int_un"),
        ({"losses.photo": {"choice": []}}, "expected a list of different single values, got"),
        ({"losses.photo": {"choice": [1, 1]}}, "expected a list of different single values, got"),
        ({"training.accumulate": {"uniform": [1, 2]}}, "expected int_uniform or choice for values such as 1"),
        ({"losses.photo": {"int_uniform": [1, 2]}}, "expected uniform or log_uniform or choice for values"),
        ({"data.augment": {"uniform": [0.0, 1.0]}}, "expected choice for values such as True, got uniform"),
        ({"network.name": {"choice": ["unknown"]}}, r"space\.network\.name: .*unknown"),
        (
            {**CONDITIONAL, "seed": {"choice": [0], "when": {"network.nam": 1}}},
            r"space\.seed\.when: .*got 'network\.nam'; did you mean 'network\.name'",
        ),
        (
            {**CONDITIONAL, "seed": {"choice": [0], "when": {"network.name": "unet"}}},
            r"space\.seed\.when\.network\.name: expected some of .*, got \['unet'\]",
        ),
    ],
)  # fmt: skip
def test_a_wrong_space_is_told(space: Mapping[str, Any], words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        check(space)


def test_a_grid_is_made_of_choices() -> None:
    with pytest.raises(SpaceError, match=r"space\.losses\.mask: expected `choice` for a grid, got `uniform`"):
        check({"losses.mask": {"uniform": [0, 1]}}).grid()


def test_the_base_lies_in_the_space_or_that_is_told() -> None:
    bases = {"base": Settings()}
    inside = check({"losses.photo": {"uniform": [0, 100]}, **CONDITIONAL})
    assert inside.point_of(bases)["losses.photo"] == Settings().losses.photo
    assert inside.settings_at(inside.point_of(bases), bases) == Settings()
    with pytest.raises(SpaceError, match=r"losses\.photo: expected a range with the base's own value, 24\.0"):
        check({"losses.photo": {"uniform": [0, 1]}}).point_of(bases)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler": "pbt"}, r"scheduler: expected one of .*'pbt': its exploiting copies .*do nothing"),
        ({"scheduler": "hyperband"}, "expected one of asha, median, none, got 'hyperband'"),
        ({"searcher": "bayes"}, "expected one of tpe, random, grid, got 'bayes'"),
        ({"objectives": ["val_loss"]}, r"objectives: expected some of val_dense_mm, step_ms.*got val_loss"),
        ({"objectives": []}, r"sweep\.objectives: .*got none"),
        ({"trials": 0}, r"sweep\.trials: expected >= 1, got 0"),
        ({"reduction": 1.0}, r"sweep\.reduction: expected > 1, got 1\.0"),
        ({"space": {}}, r"sweep\.space: expected at least one setting"),
    ],
)
def test_wrong_settings_of_a_sweep_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TuneSettings(**{"space": CONDITIONAL, **changes})


def test_a_misspelt_key_of_the_sweep_is_told_with_the_near_one(tmp_path: Path) -> None:
    path = write(tmp_path, "base: base.yaml\nspace: {seed: {choice: [0, 1]}}\nsheduler: none\n")
    with pytest.raises(SettingsError, match="there is no setting 'sheduler'; did you mean 'scheduler'"):
        new_sweep(path)
    with pytest.raises(SettingsError, match=r"'training\.epoch'; did you mean 'training\.epochs'"):
        new_sweep(
            write(tmp_path, "base: base.yaml\nspace: {seed: {choice: [0]}}\n"), ["settings.training.epoch=3"]
        )


def test_settings_files_are_named_once(tmp_path: Path) -> None:
    for text, got in (
        ("space: {seed: {choice: [0]}}", "neither"),
        ("base: base.yaml\nspace: {config: {choice: [base.yaml]}}", "both"),
    ):
        with pytest.raises(
            ValueError, match=f"either `base` or `space.config` to name settings files, got {got}"
        ):
            new_sweep(write(tmp_path, text))


def test_a_sweep_is_opened_as_it_was_written_whatever_became_of_its_files(tmp_path: Path) -> None:
    text = (
        "name: s\nbase: base.yaml\nsettings: {losses: {photo: 3}}\nspace: {losses.mask: {uniform: [0, 9]}}\n"
    )
    path = write(tmp_path, text)
    sweep = new_sweep(path, ["trials=5", "settings.training.epochs=7"], "mine")
    assert (sweep.uri, sweep.tune.trials) == (f"{tmp_path}/runs/mine", 5)
    write_sweep(sweep)
    (tmp_path / "base.yaml").unlink()
    for where, runs in ((sweep.uri, "runs"), ("mine", f"{tmp_path}/runs")):
        assert open_sweep(where, runs) == sweep
    settings = open_sweep(sweep.uri).settings_at({"losses.mask": 2.5})
    assert (settings.losses.photo, settings.losses.mask, settings.training.epochs) == (3.0, 2.5, 7)
    write(tmp_path, text)
    with pytest.raises(
        RunError, match=r"expected a new folder, but sweep\.yaml is there; go on with --resume"
    ):
        new_sweep(path, sweep_id="mine")
    with pytest.raises(RunError, match=r"there is no sweep 'gone': expected sweep\.yaml in one of"):
        open_sweep("gone")


def test_a_trial_is_a_run_in_the_sweeps_folder(tmp_path: Path) -> None:
    tune = TuneSettings(space={CONFIG: {"choice": ["a", "b"]}, "losses.mask": {"uniform": [0, 9]}})
    sweep = Sweep("mine", str(tmp_path), tune, {"a": Settings(name="a"), "b": Settings(name="b")})
    run = sweep.run("t1", {CONFIG: "b", "losses.mask": 2.5}, 0.4)
    assert (run.id, run.uri) == ("t1", f"{tmp_path}/trials/t1")
    assert (run.settings.name, run.settings.losses.mask) == ("b", 2.5)
    assert (run.settings.training.runs, run.settings.training.cpus_per_worker) == (f"{tmp_path}/trials", 0.4)
    (tmp_path / "c.yaml").write_text(dump_settings(run.settings))
    assert load_settings(tmp_path / "c.yaml") == run.settings
