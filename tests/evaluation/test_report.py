"""The page, its charts and its pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import trimesh

from dfmvr.data.sample import Sample
from dfmvr.evaluation.charts import nice_top, position_scale, sample_histogram, ticks
from dfmvr.evaluation.evaluator import METHODS, Coefficients, Evaluator
from dfmvr.evaluation.gallery import TURNS, picture_sample
from dfmvr.evaluation.pictures import (
    ERROR_SCALE,
    OUTSIDE,
    data_uri,
    draw_turntable,
    enlarge,
    error_colours,
    mark_landmarks,
    overlay,
)
from dfmvr.evaluation.report import COLUMNS, ReportContent, write_report
from dfmvr.evaluation.summary import pooled_areas, summarise

VOID = {"meta", "img", "link", "br", "input", "hr"}


class Outline(HTMLParser):
    """Checks that tags close in order, and keeps the text and the addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def row(evaluator: Evaluator, sample: Sample) -> dict:
    floor = evaluator.floor(sample)
    row = evaluator(sample, Coefficients(0.5 * floor.identity, 0.5 * floor.expression))
    light = np.zeros((3, 9, 3))
    light[:, 0] = 0.8
    return row | {
        "albedo": np.zeros(80),
        "light": light,
        "rotation": np.tile(np.eye(3), (3, 1, 1)),
        "translation": np.zeros((3, 3)),
    }


@pytest.fixture(scope="module")
def page(evaluator: Evaluator, sample: Sample, row: dict) -> str:
    content = ReportContent(
        title="<script>alert(1)</script> & co",
        metrics=summarise([row], 100) | {"n_bad_rows": 2},
        areas={method: pooled_areas([row], method) for method in METHODS},
        rmse_mm={method: np.array([row[f"{method}_rmse_mm"]]) for method in METHODS},
        gallery=[picture_sample(evaluator, sample, row, 3.0)],
        top_mm=3.0,
        facts={"command": "evaluate --run <x>", "weights": "abc"},
        settings_yaml="name: '<b>'\n",
    )
    return write_report(content)


def test_the_page_is_whole_and_its_tags_close(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "$" not in re.sub(r"base64,[^)\"]*", "", page)  # every placeholder is filled
    for words in ("mean face", "best 3DMM fit", "By region", "Unreadable and set aside: 2", "1 samples of 1"):
        assert words in outline.text


def test_the_page_fetches_nothing(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.addresses
    assert all(address.startswith("data:image/webp;base64,") for address in outline.addresses)
    assert not re.findall(r"url\((?!data:)|@import|https?://", page)


def test_text_is_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    assert "evaluate --run &lt;x&gt;" in page
    assert "s&lt;1&gt;" in page
    assert "&lt;b&gt;" in page


def test_the_numbers_are_those_of_the_metrics(page: str, row: dict) -> None:
    text = re.sub(r"<[^>]+>", "", page)
    for key, _, _ in COLUMNS:
        assert f"{row['network_' + key]:.3f}" in text, key


def test_a_sphere_is_drawn_round_shaded_and_turned(sphere: trimesh.Trimesh) -> None:
    colours = np.where(sphere.vertices[:, :1] > 0, [[1.0, 0, 0]], [[0, 0, 1.0]])
    yaws = (-90, 0, 90)
    picture = draw_turntable(
        sphere.vertices,
        sphere.faces,
        yaws,
        centre=np.zeros(3),
        colours=colours,
        size=64,
        span_mm=128.0,
        relief=0,
    )
    assert picture.shape == (64, 3 * 64, 4)
    left, front, right = np.split(picture, 3, axis=1)
    for view in (left, front, right):
        assert view[..., 3].mean() / 255 == pytest.approx(np.pi * 50**2 / 128**2, rel=0.02)
        assert view[0, 0, 3] == 0
    # +x (red) is the viewer's right in front; yaw < 0 turns it towards the viewer
    assert tuple(front[32, 48, :3]) == (255, 0, 0)
    assert tuple(front[32, 16, :3]) == (0, 0, 255)
    assert tuple(left[32, 32, :3]) == (255, 0, 0)
    assert tuple(right[32, 32, :3]) == (0, 0, 255)


def test_errors_take_the_scale_s_colours_and_the_rest_is_grey() -> None:
    colours = error_colours(np.array([0.0, 9.0]), np.array([2, 0]), 3, top_mm=3.0)
    np.testing.assert_allclose(colours[2] * 255, ERROR_SCALE[0][1])
    np.testing.assert_allclose(colours[0] * 255, ERROR_SCALE[-1][1])
    np.testing.assert_allclose(colours[1], OUTSIDE)


def test_overlays_change_the_photograph_only_under_the_face() -> None:
    photo = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    laid = overlay(photo, np.ones((20, 20, 3)), mask, strength=0.5)
    assert (laid[~mask] == 100).all()
    assert int(laid[10, 10, 0]) == pytest.approx(177, abs=2)


def test_landmarks_of_no_weight_are_not_drawn() -> None:
    photo = np.zeros((40, 40, 3), np.uint8)
    given, predicted = np.full((2, 2), 10.5), np.full((1, 2), 30.5)
    given[1] = 20.5
    marked = mark_landmarks(photo, given, np.array([1.0, 0.0]), predicted)
    assert marked[10, 10, 1] > 200  # a green dot
    assert not marked[18:23, 18:23].any()
    assert marked[30, 32:34, 0].max() > 150  # a ring
    assert not photo.any()  # the photograph itself is left alone


def test_enlarging_keeps_the_kind() -> None:
    assert enlarge(np.zeros((8, 8, 3), np.uint8), 24).shape == (24, 24, 3)
    assert data_uri(np.zeros((4, 4, 4), np.uint8)).startswith("data:image/webp;base64,")


@pytest.mark.parametrize(("value", "top"), [(0.07, 0.08), (1.0, 1.0), (1.01, 1.5), (3.2, 4.0), (23, 30)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert nice_top(value) == pytest.approx(top)
    marks = ticks(top)
    assert marks[0] == 0
    assert 3 <= len(marks) <= 11
    assert marks[-1] <= top * (1 + 1e-9)


def test_labels_that_would_touch_point_away_from_each_other() -> None:
    apart = position_scale({"mean_face": 2.0, "network": 1.0, "floor": 0.1})
    close = position_scale({"mean_face": 2.0, "network": 1.9, "floor": 0.1})
    assert 'text-anchor="end"' not in apart
    assert re.search('text-anchor="end">network 1.90', close)
    assert re.search('text-anchor="start">mean face 2.00', close)


def test_the_floor_does_not_flatten_the_histogram() -> None:
    spread = np.linspace(1, 2, 40)
    drawn = sample_histogram({"mean_face": spread, "network": spread, "floor": np.full(40, 0.1)})
    tops = [float(top) for top in re.findall(r'class="fill \w+ veil" [^>]*?y="([\d.]+)"', drawn)]
    assert "40 samples at" in drawn  # the tip tells the whole number
    middle = (min(tops) + max(tops)) / 2
    assert sum(top < middle + 1e-9 for top in tops) > 10  # the others fill the chart
    assert min(tops) >= 10  # and the floor does not leave it


def test_turntables_are_odd_so_that_the_middle_is_frontal() -> None:
    assert TURNS[len(TURNS) // 2] == 0
