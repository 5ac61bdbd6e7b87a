"""The tables: who stands in them, what is measured, and the statistics."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tables.contents import make_tables, margins
from benchmarks.tables.measuring import Bench, faces_of_test
from benchmarks.tables.results import Rows, Runs, best_of, combine
from benchmarks.tables.systems import ALL, BASELINES, RANDOM, SYSTEMS, TURNED, Condition, System
from benchmarks.tables.writing import to_json, to_markdown
from dfmvr.config import load_settings
from dfmvr.data.datasets.synthetic import split_of

ROOT = Path(__file__).parents[2]


def rows(*rmse: float) -> Rows:
    """Two samples a person."""
    return [
        {"sample_id": f"x{k}", "subject_id": f"p{k // 2}", "rmse": value, "point_to_plane_rmse": value / 2}
        | dict.fromkeys(("dense", "metric_rmse", "legacy_df_mvr"), 2 * value)
        for k, value in enumerate(rmse)
    ]


@pytest.fixture(scope="module")
def bench() -> Bench:
    settings = load_settings(ROOT / "configs/ablation/v6.yaml", ["synthetic.n_subjects=300"])
    return Bench(settings)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_learns_from_the_same_samples_for_the_same_time(system: System) -> None:
    reference = load_settings(ROOT / "configs/ablation/v6.yaml")
    settings = load_settings(ROOT / "configs" / f"{system.config}.yaml")
    assert settings.synthetic == reference.synthetic
    assert settings.evaluation == reference.evaluation
    assert settings.seed == reference.seed
    same = ("uri", "image_size", "batch_size", "augment", "missing_mask_share")
    assert [getattr(settings.data, k) for k in same] == [getattr(reference.data, k) for k in same]
    assert settings.training == dataclasses.replace(
        reference.training, shade_in_view=settings.training.shade_in_view
    )
    assert settings.optimiser == reference.optimiser


def test_only_people_of_the_test_split_are_measured_once_each() -> None:
    settings = load_settings(ROOT / "configs/ablation/v6.yaml")
    faces = faces_of_test(settings, None)
    people = [person for person, _ in faces]
    assert len(set(people)) == len(people) == 160
    assert {split_of(settings.synthetic, person) for person in people} == {"test"}
    assert {expression for _, expression in faces} == {0, 1}


def test_turning_the_left_view_changes_neither_the_face_nor_the_other_views(bench: Bench) -> None:
    face = faces_of_test(bench.settings, None)[0]
    usual, turned = bench.sample(face, ALL), bench.sample(face, TURNED[0])
    assert [round(math.degrees(yaw)) for yaw in turned.view_yaws] == [-10, 0, 45]
    np.testing.assert_array_equal(usual.scan_vertices, turned.scan_vertices)
    np.testing.assert_array_equal(usual.images[1:], turned.images[1:])
    assert (usual.images[0] != turned.images[0]).mean() > 0.2


def test_random_angles_are_some_of_the_four_and_repeat(bench: Bench) -> None:
    faces = faces_of_test(bench.settings, None)
    yaws = [round(-math.degrees(bench.sample(face, RANDOM).view_yaws[0])) for face in faces]
    assert set(yaws) <= {10, 20, 30, 45}
    assert len(set(yaws)) > 1
    again = Bench(bench.settings)
    assert round(-math.degrees(again.sample(faces[0], RANDOM).view_yaws[0])) == yaws[0]


def test_the_mean_face_is_measured_as_the_evaluator_does(bench: Bench) -> None:
    face = faces_of_test(bench.settings, None)[0]
    (row,) = bench.rows(None, [face], ALL)
    expected = bench.evaluator.measure(bench.truth(face), bench.evaluator.mean_coefficients)
    assert row["rmse"] == expected.values["rmse"]
    assert row["sample_id"] == bench.sample(face, ALL).sample_id


def test_the_best_of_three_is_chosen_sample_by_sample() -> None:
    assert [row["rmse"] for row in best_of([rows(1, 5), rows(2, 4), rows(3, 3)])] == [1, 3]


def test_seeds_are_averaged_sample_by_sample() -> None:
    both = combine([rows(1, 2), rows(3, 6)])
    np.testing.assert_allclose(both.rmse_mm, [2, 4])
    assert both.mean == 3
    assert both.of_seeds == (1.5, 4.5)
    assert both.values["point_to_plane_rmse"] == 1.5


def test_interval_of_equal_people_is_a_point_and_of_unequal_people_is_not() -> None:
    low, high = combine([rows(1, 3, 1, 3)]).interval  # each person's mean is 2
    assert low == high == 2
    low, high = combine([rows(1, 1, 3, 3)]).interval
    assert (low, high) == (1, 3)


def test_share_below_is_of_the_same_samples() -> None:
    below = combine([rows(1, 1, 3, 3)]).below(combine([rows(2, 2, 6, 6)]))
    assert below == {"share": 0.5, "ci_low": 0.5, "ci_high": 0.5}


def test_measurements_are_kept_until_the_weights_change(tmp_path: Path) -> None:
    runs, system, made = Runs(tmp_path), SYSTEMS[0], []

    def train(weights: str) -> None:
        file = tmp_path / runs.id(system, 0) / "metrics.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"training": {"weights_hash": weights, "epochs": 1}}))

    def measure() -> Rows:
        made.append(1)
        return rows(1, 2)

    assert runs.trained_seeds(system) == ()
    train("a")
    assert runs.trained_seeds(system) == (0,)
    first = runs.rows(system, 0, ALL, ["x0", "x1"], measure)
    assert runs.rows(system, 0, ALL, ["x1"], measure) == first[1:]
    assert len(made) == 1
    runs.rows(system, 0, Condition("front", ("front",)), ["x0"], measure)
    runs.rows(system, 0, ALL, ["x0", "x2"], measure)
    train("b")
    runs.rows(system, 0, ALL, ["x0"], measure)
    assert len(made) == 4


def fake(name: str, condition: Condition) -> list[Rows]:
    """v6 and the baselines are trained; the confidence-weighted one is the best of them without an oracle."""
    if name not in (*BASELINES, "v6"):
        return []
    size = {"v6": 1.0, "confidence": 2.0}.get(name, 3.0)
    return [rows(size * (0.1 if condition.given_views else 1.0), size)]


def test_tables_show_every_system_and_say_what_is_not_trained() -> None:
    tables = make_tables(fake, combine([rows(4, 4)]))
    assert [table.name for table in tables] == ["table_1", "table_2", "table_3", "table_4", "defects"]
    text = "\n".join(map(to_markdown, tables))
    for system in SYSTEMS:
        assert system.title in text
    ablation = to_markdown(tables[2]).splitlines()
    assert next(line for line in ablation if line.startswith("| v1")).count("–") == 5
    assert "| 1.000 (1.000–1.000) |" in next(line for line in ablation if line.startswith("| v6"))
    values = to_json(tables[3])["deep3d"]
    assert set(values) == {"10°", "20°", "30°", "45°", "random", "paper"}
    assert values["random"]["rmse_mm"] == 3.0
    for table in tables:
        lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_the_margin_is_against_the_best_baseline_without_an_oracle() -> None:
    found = margins(fake)
    assert found["best_baseline"] == "confidence"
    assert found["best_baseline_rmse_mm"] == 2.0
    assert found["v6_below_best_baseline"] == found["ci_low"] == found["ci_high"] == 0.5
    assert "ours_below_best_baseline" not in found
    assert margins(lambda name, condition: []) == {}
    table = make_tables(fake, combine([rows(4, 4)]))[0]
    oracle = next(row.cells[0] for row in table.rows if row.key == "deep3d_best")
    assert oracle is not None
    assert oracle.mean == pytest.approx((0.3 + 3.0) / 2)
