from pathlib import Path

import pytest

from dfmvr.config import (
    Settings,
    SettingsError,
    config_hash,
    dump_settings,
    load_settings,
    settings_dict,
    settings_from_dict,
)
from dfmvr.data.datasets.synthetic import split_of

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "tune")  # those are sweeps


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_settings(path).name == path.stem


def test_nobody_whom_one_shipped_set_tests_trains_another() -> None:
    """People are told apart by seed and number; a person's split depends on the shares alone."""
    sets = [load_settings(path) for path in SHIPPED]
    for one in sets:
        for other in sets:
            count = min(one.synthetic.n_subjects, other.synthetic.n_subjects)
            tested = [k for k in range(count) if split_of(one.synthetic, k) == "test"]
            assert one.seed == other.seed
            assert {split_of(other.synthetic, k) for k in tested} == {"test"}, (one.name, other.name)


def test_overrides_win_over_files_and_files_over_what_they_extend(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\nname: base\n")
    (tmp_path / "variant.yaml").write_text("extends: base.yaml\nname: variant\n")
    settings = load_settings(tmp_path / "variant.yaml", ["seed=7"])
    assert (settings.name, settings.seed) == ("variant", 7)
    assert load_settings(tmp_path / "variant.yaml").seed == 1


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    settings = load_settings(None, ["seed=3", "network.width=0.25"])
    (tmp_path / "dumped.yaml").write_text(dump_settings(settings))
    assert load_settings(tmp_path / "dumped.yaml") == settings
    assert settings_from_dict(settings_dict(settings)) == settings


def test_hash_changes_with_any_field() -> None:
    assert config_hash(load_settings(None, ["losses.photo=5"])) != config_hash(Settings())
    assert config_hash(load_settings()) == config_hash(Settings())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("losses.foto=1", r"there is no setting 'losses.foto'; did you mean 'losses.photo'"),
        ("seed=many", r"override 'seed=many': seed: .*many"),
        ("seed", "expected key=value"),
        ("network.width=-1", "width"),
    ],
)
def test_a_wrong_override_names_the_key(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(None, [override])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml: no such configuration file"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingsError, match="expected a mapping"):
        load_settings(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(SettingsError, match=r"broken\.yaml: not readable as YAML"):
        load_settings(tmp_path / "broken.yaml")
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml\n")
    with pytest.raises(SettingsError, match="extends itself"):
        load_settings(tmp_path / "loop.yaml")
