from __future__ import annotations

import numpy as np
import pytest

from dfmvr.evaluation.evaluator import METHODS
from dfmvr.evaluation.protocol import area_by_distance
from dfmvr.evaluation.regions import REGIONS
from dfmvr.evaluation.results import pack_row, rows_to_table, unpack_row
from dfmvr.evaluation.summary import (
    AVERAGED,
    gallery_rows,
    improvement,
    percentile,
    pooled_statistics,
    summarise,
    terminal_table,
)


def make_row(sample: int, subject: str, rmse: dict[str, float]) -> dict:
    row: dict = {"sample_id": f"s{sample:03d}", "subject_id": subject, "expression_id": "smile"}
    for method in METHODS:
        distances = np.abs(np.random.default_rng(sample).normal(0, rmse[method], 4000))
        row |= {f"{method}_{name}_mm": rmse[method] for name in AVERAGED}
        regions = np.full(len(REGIONS), rmse[method])
        regions[-1] = np.nan if sample == 0 else 2 * rmse[method]
        row[f"{method}_regions_mm"] = regions
        row[f"{method}_areas"] = area_by_distance(distances, np.ones(4000))
        row[f"{method}_converged"] = sample != 1
    return row


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    rng = np.random.default_rng(7)
    made = []
    for subject in range(12):
        base = rng.uniform(1.5, 2.5)
        for expression in range(2):
            rmse = {"mean_face": base, "network": base * rng.uniform(0.5, 0.7), "floor": 0.2}
            made.append(make_row(2 * subject + expression, f"p{subject}", rmse))
    return made


def test_the_metrics_have_the_names_that_scripts_rely_on(rows: list[dict]) -> None:
    metrics = summarise(rows, 200)
    for name in (
        "rmse_mm",
        "dense_mm",
        "mean_mm",
        "median_mm",
        "std_mm",
        "metric_rmse_mm",
        "legacy_df_mvr_mm",
    ):
        assert set(metrics[name]) == {"mean_face", "network", "floor"}
    assert tuple(metrics["regions_mm"]) == REGIONS
    assert set(metrics["improvement_over_mean_face"]) == {"share", "ci_low", "ci_high"}
    assert (metrics["n_samples"], metrics["n_subjects"]) == (24, 12)
    assert metrics["n_unconverged"] == dict.fromkeys(METHODS, 1)


def test_numbers_are_means_over_samples(rows: list[dict]) -> None:
    metrics = summarise(rows, 200)
    values = np.array([row["network_rmse_mm"] for row in rows])
    assert metrics["rmse_mm"]["network"] == pytest.approx(values.mean())
    assert metrics["rmse_std_mm"]["network"] == pytest.approx(values.std())
    assert metrics["regions_mm"]["nose"]["network"] == pytest.approx(values.mean())
    # a region that one scan lacks is averaged over the others
    assert metrics["regions_mm"]["chin"]["network"] == pytest.approx(2 * values[1:].mean())


def test_pooled_statistics_are_those_of_all_distances() -> None:
    rng = np.random.default_rng(0)
    distances, areas = np.abs(rng.normal(0, 1.5, 50_000)), rng.uniform(0.5, 2, 50_000)
    found = pooled_statistics(area_by_distance(distances, areas).astype(float))
    mean = np.average(distances, weights=areas)
    square = np.average(distances**2, weights=areas)
    assert found["mean_mm"] == pytest.approx(mean, abs=2e-3)
    assert found["rmse_mm"] == pytest.approx(np.sqrt(square), abs=2e-3)
    assert found["std_mm"] == pytest.approx(np.sqrt(square - mean**2), abs=2e-3)
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    for name, wanted in (("median_mm", 0.5), ("p90_mm", 0.9)):
        assert found[name] == pytest.approx(distances[order][np.searchsorted(share, wanted)], abs=0.01)


def test_percentiles_go_from_nothing_to_the_largest() -> None:
    bins = area_by_distance(np.array([0.5, 1.5]), np.array([1.0, 1.0])).astype(float)
    assert percentile(bins, 0.25) == pytest.approx(0.505)
    assert percentile(bins, 1.0) == pytest.approx(1.51)


def test_the_interval_holds_the_share_and_is_the_same_each_time(rows: list[dict]) -> None:
    found = improvement(rows, 500)
    assert found == improvement(rows, 500)
    assert found["ci_low"] < found["share"] < found["ci_high"]
    assert 0.3 < found["share"] < 0.5


def test_people_are_drawn_not_samples() -> None:
    """Ten copies of every sample of a person must not narrow the interval."""
    rng = np.random.default_rng(3)
    once = [
        make_row(i, f"p{i}", {"mean_face": 2.0, "network": rng.uniform(0.8, 1.6), "floor": 0.1})
        for i in range(8)
    ]
    few, many = improvement(once, 2000), improvement(once * 10, 2000)
    assert many["ci_high"] - many["ci_low"] == pytest.approx(few["ci_high"] - few["ci_low"], rel=1e-9)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one measured sample, got none"):
        summarise([], 100)


def test_the_gallery_runs_from_best_to_worst(rows: list[dict]) -> None:
    chosen = [row["network_rmse_mm"] for row in gallery_rows(rows, 5)]
    everyone = sorted(row["network_rmse_mm"] for row in rows)
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (everyone[0], everyone[-1])
    assert len(gallery_rows(rows, 100)) == len(rows)
    assert gallery_rows(rows, 0) == []


def test_the_table_names_all_three_and_the_gain(rows: list[dict]) -> None:
    table = terminal_table(summarise(rows, 200))
    for words in ("mean face", "network", "floor (best 3DMM fit)", "below mean face by", "24 samples of 12"):
        assert words in table


def test_a_row_survives_packing(rows: list[dict]) -> None:
    again = unpack_row(pack_row(rows[0]))
    assert again["sample_id"] == "s000"
    assert again["network_converged"] is True
    assert again["network_rmse_mm"] == rows[0]["network_rmse_mm"]
    np.testing.assert_array_equal(again["network_areas"], rows[0]["network_areas"])
    assert summarise([again], 100)["n_samples"] == 1


def test_the_table_of_samples_can_be_read(rows: list[dict]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(rows_to_table(rows)))
    assert table.num_rows == 24
    assert table.column("network_rmse_mm").to_pylist() == [row["network_rmse_mm"] for row in rows]
    assert not [name for name in table.column_names if name.endswith("_areas")]
