"""Good requests: JSON, meshes, batches, counters, idempotency, real photographs; and a busy replica."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import re
import sys
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimage.data
import trimesh
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dfmvr.predictor import NOT_REFINED, PreparedViews
from dfmvr.types import VIEW_NAMES
from serve.endpoint import Endpoint
from serve.engine import NO_FINDER, Engine, Face
from serve.settings import ServeSettings
from tests.serve.conftest import (
    POINTS,
    SIZE,
    Fields,
    archive_names,
    asking,
    endpoint_of,
    jpeg,
    picture_file,
    png,
    problem,
)

ONE, MANY = "/v1/reconstructions", "/v1/reconstructions:batch"
ASTRONAUT = skimage.data.astronaut()
MESHES = {"glb": "model/gltf-binary", "obj": "model/obj", "ply": "application/ply"}


@pytest.fixture(scope="module")
def answer(client: TestClient, triple: Fields) -> dict[str, Any]:
    """The JSON of the triple."""
    response = client.post(ONE, files=triple)
    assert response.status_code == 200, response.text
    return dict(response.json())


def photograph(
    client: TestClient, image: np.ndarray, points: Any = None, **parameters: str
) -> dict[str, Any]:
    """Reconstruct a face from one picture, with landmarks or without."""
    data = {} if points is None else {"landmarks": json.dumps({"front": np.asarray(points).tolist()})}
    response = client.post(ONE, files={"front": png(image)}, data=data, params=parameters)
    assert response.status_code == 200, response.text
    return dict(response.json())


def landmarks_of(content: dict[str, Any], view: str = "front") -> np.ndarray:
    return np.array(content["views"][VIEW_NAMES.index(view)]["landmarks_2d"])


def eyes_of(content: dict[str, Any]) -> np.ndarray:
    """Return the middles of the eyes' corners in the front view: right eye, left eye."""
    points = landmarks_of(content)
    return np.array([points[[36, 39]].mean(0), points[[42, 45]].mean(0)])


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two answers tell the same face; how long it took does not count."""
    return {**a, "timings_ms": 0} == {**b, "timings_ms": 0}


def test_an_answer_holds_the_whole_face(answer: dict[str, Any], client: TestClient) -> None:
    model = client.get("/v1/model").json()
    assert [view["name"] for view in answer["views"]] == list(VIEW_NAMES)
    assert [view["source"] for view in answer["views"]] == list(VIEW_NAMES)
    lengths = {name: len(values) for name, values in answer["coefficients"].items()}
    assert lengths == {"identity": 80, "expression": len(model["expression_names"]), "albedo": 80}
    assert np.shape(answer["landmarks_3d"]) == (68, 3)
    for view in answer["views"]:
        rotation = np.array(view["rotation"])
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-4)
        assert np.shape(view["light"]) == (9, 3)
        assert landmarks_of(answer, view["name"]).min() > 0
        assert landmarks_of(answer, view["name"]).max() < SIZE
    yaws = [view["yaw_degrees"] for view in answer["views"]]
    assert yaws[0] < -15 < yaws[1] < 15 < yaws[2]
    assert answer["weights_hash"] == model["weights_hash"]
    assert answer["face_model_hash"] == model["face_model_hash"]
    assert answer["warnings"] == []


def test_sizes_are_those_of_a_human_head(answer: dict[str, Any]) -> None:
    sizes = answer["sizes"]
    assert 50 < sizes["eye_centres_mm"] < 75
    assert sizes["eye_centres_mm"] < sizes["eye_outer_corners_mm"] < 120
    assert 30 < sizes["nose_length_mm"] < 65
    assert 35 < sizes["mouth_width_mm"] < 75
    assert 110 < sizes["face_width_mm"] < 260
    corners = np.array(answer["landmarks_3d"])[[36, 45]]
    assert sizes["eye_outer_corners_mm"] == pytest.approx(np.linalg.norm(corners[0] - corners[1]), abs=0.01)


def test_timings_name_the_stages(answer: dict[str, Any]) -> None:
    assert list(answer["timings_ms"]) == ["read", "find", "prepare", "predict"]
    assert all(0 <= value < 60_000 for value in answer["timings_ms"].values())
    assert answer["timings_ms"]["predict"] > 0.1


def test_missing_views_are_warned_of(client: TestClient, triple: Fields) -> None:
    content = client.post(ONE, files={"front": triple["front"]}).json()
    assert [text.split(":")[0] for text in content["warnings"]] == ["no left view", "no right view"]
    assert [view["source"] for view in content["views"]] == ["front"] * 3


@pytest.mark.parametrize(
    ("degrees", "warning"),
    [(40, None), (85, "face at 8. degrees, one eye is hidden"), (-40, "are left and right swapped?")],
)
def test_a_side_face_at_an_odd_angle_is_warned_of(
    degrees: float, warning: str | None, client: TestClient, engine: Engine
) -> None:
    face_model, angle = engine.predictor.face_model, math.radians(degrees)
    points = face_model.mean_shape[face_model.landmarks_68].double().numpy()
    x = math.cos(angle) * points[:, 0] - math.sin(angle) * points[:, 2]  # the nose to the picture's left
    flat = np.stack([x, -points[:, 1]], -1) + 250
    landmarks = json.dumps({"front": POINTS, "left": flat.tolist()})
    files = {"front": png(ASTRONAUT), "left": png(ASTRONAUT)}
    content = client.post(ONE, files=files, data={"landmarks": landmarks}).json()
    doubts = [text for text in content["warnings"] if text.startswith("left view")]
    assert len(doubts) == (warning is not None)
    assert warning is None or re.search(warning, doubts[0])


def test_landmarks_come_back_in_the_pixels_of_the_picture_that_was_sent(client: TestClient) -> None:
    """A picture shifted and enlarged together with its landmarks shows the same face, elsewhere."""
    plain = photograph(client, ASTRONAUT, POINTS)
    wide = np.pad(ASTRONAUT, ((30, 0), (100, 0), (0, 0)), mode="edge")
    large = np.asarray(
        Image.fromarray(wide).resize((2 * wide.shape[1], 2 * wide.shape[0]), Image.Resampling.BICUBIC)
    )
    shift = np.array([100, 30])
    moved = photograph(client, large, 2 * (np.array(POINTS) + shift))
    expected = 2 * (landmarks_of(plain) + shift)
    assert np.abs(landmarks_of(moved) - expected).max() < 4  # the face is 200 px wide here
    given = 2 * (np.array(POINTS) + shift)
    assert np.abs(eyes_of(moved) - given[:2]).max() < 16  # and they are where the eyes are


def test_landmarks_of_five_and_of_68_points_tell_about_the_same_face(
    client: TestClient, engine: Engine
) -> None:
    found = landmarks_of(photograph(client, ASTRONAUT))
    few, many = photograph(client, ASTRONAUT, POINTS), photograph(client, ASTRONAUT, found)
    for content in (few, many):
        assert np.abs(eyes_of(content) - POINTS[:2]).max() < 8  # the eyes are 45 px apart
    assert not same(few, many)


def test_a_face_is_refined_where_it_is_asked_for(client: TestClient, engine: Engine) -> None:
    network = photograph(client, ASTRONAUT, POINTS)
    assert network["refined"] is False
    truth = landmarks_of(network)
    truth[48:, 1] += 4.0  # a longer chin and upper lip than the network saw
    truth[5:12, 1] += 4.0
    first = photograph(client, ASTRONAUT, truth)
    refined = photograph(client, ASTRONAUT, truth, refine="true")
    assert (first["refined"], refined["refined"], refined["warnings"]) == (False, True, first["warnings"])
    assert list(refined["timings_ms"]) == ["read", "find", "prepare", "predict", "refine"]
    off = [np.linalg.norm(landmarks_of(content) - truth, axis=1).mean() for content in (first, refined)]
    assert off[1] < 0.7 * off[0]
    for name in ("identity", "expression"):
        assert refined["coefficients"][name] != first["coefficients"][name]
    assert refined["coefficients"]["albedo"] == first["coefficients"]["albedo"]


def test_a_refined_face_is_so_in_all_formats(client: TestClient, engine: Engine) -> None:
    truth = landmarks_of(photograph(client, ASTRONAUT, POINTS)) * 1.01
    content = photograph(client, ASTRONAUT, truth, refine="true")
    data = {"landmarks": json.dumps({"front": truth.tolist()})}
    outer = engine.predictor.face_model.landmarks_68[[0, 16]].numpy()
    for kind in MESHES:
        response = client.post(
            ONE, files={"front": png(ASTRONAUT)}, data=data, params={"refine": "true", "format": kind}
        )
        mesh = trimesh.load(io.BytesIO(response.content), file_type=kind, force="mesh", process=False)
        width = np.linalg.norm(np.subtract(*np.asarray(mesh.vertices)[outer])) * (
            1000 if kind == "glb" else 1
        )
        assert width == pytest.approx(content["sizes"]["face_width_mm"], abs=0.1)
    batch = {f"0.{name}": value for name, value in {"front": png(ASTRONAUT), **data}.items()}
    files, data = {"0.front": batch["0.front"]}, {"0.landmarks": batch["0.landmarks"]}
    items = client.post(MANY, files=files, data=data, params={"refine": "true"}).json()["items"]
    assert same(items[0]["reconstruction"], content)


def test_a_face_without_landmarks_is_not_refined_and_says_so(client: TestClient, triple: Fields) -> None:
    crops = client.post(ONE, files=triple, params={"refine": "true"}).json()
    few = photograph(client, ASTRONAUT, POINTS, refine="true")
    for content in (crops, few):
        assert content["refined"] is False
        assert content["warnings"][-1] == NOT_REFINED
    assert same({**crops, "warnings": []}, client.post(ONE, files=triple).json())


def test_found_landmarks_refine_a_face(client: TestClient, engine: Engine) -> None:
    needs_dlib(engine)
    assert photograph(client, ASTRONAUT, refine="true")["refined"] is True


def test_landmarks_may_be_given_for_some_views_only(client: TestClient, engine: Engine) -> None:
    needs_dlib(engine)
    files = {"front": png(ASTRONAUT), "left": png(ASTRONAUT)}
    response = client.post(ONE, files=files, data={"landmarks": json.dumps({"left": POINTS})})
    assert response.status_code == 200, response.text
    assert [view["source"] for view in response.json()["views"]] == ["left", "front", "front"]


def test_a_mask_changes_the_answer(client: TestClient, triple: Fields) -> None:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[16:48, 16:48], labels[30:40, 28:36] = 1, 6
    masked = client.post(ONE, files={"front": triple["front"], "front_mask": png(labels)})
    assert masked.status_code == 200, masked.text
    nothing = client.post(ONE, files={"front": triple["front"], "front_mask": png(0 * labels)})
    plain = client.post(ONE, files={"front": triple["front"]})
    assert same(nothing.json(), plain.json())
    assert not same(masked.json(), plain.json())


def test_a_photograph_turned_by_its_exif_data_is_the_upright_one(client: TestClient) -> None:
    upright = picture_file(ASTRONAUT, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = picture_file(np.rot90(ASTRONAUT), "PNG", exif=exif)
    jpegs = [
        client.post(ONE, files={"front": ("x.jpg", data, "image/jpeg")}).json() for data in (upright, lying)
    ]
    assert same(*jpegs)
    lossy = picture_file(np.rot90(ASTRONAUT), "JPEG", exif=exif, quality=95)
    content = client.post(ONE, files={"front": lossy}).json()
    assert np.abs(landmarks_of(content) - landmarks_of(jpegs[0])).max() < 3


@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("asked", ["format", "Accept"])
def test_meshes_come_as_asked_for(
    kind: str, asked: str, client: TestClient, triple: Fields, answer: dict[str, Any], engine: Engine
) -> None:
    headers = (
        {"accept": f"text/html, {MESHES[kind]};q=0.9, application/json;q=0.1"} if asked == "Accept" else {}
    )
    params = {"format": kind} if asked == "format" else {}
    response = client.post(ONE, files=triple, params=params, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MESHES[kind]
    assert response.headers["content-disposition"] == f'attachment; filename="face.{kind}"'
    mesh = trimesh.load(io.BytesIO(response.content), file_type=kind, force="mesh", process=False)
    unit = 1000 if kind == "glb" else 1  # GLB is in metres, the others in millimetres
    assert len(mesh.faces) == client.get("/v1/model").json()["triangles"]
    points = engine.predictor.face_model.landmarks_68[[0, 16]].numpy()
    apart = np.linalg.norm(np.subtract(*np.asarray(mesh.vertices)[points]))
    assert apart * unit == pytest.approx(answer["sizes"]["face_width_mm"], abs=0.1)
    assert 150 < mesh.extents[1] * unit < 400


def test_the_format_asked_for_by_name_wins_over_accept(client: TestClient, triple: Fields) -> None:
    response = client.post(ONE, files=triple, params={"format": "json"}, headers={"accept": MESHES["glb"]})
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("model/*", "model/gltf-binary"),
        ("application/json;q=0.2, model/obj;q=0.3", "model/obj"),
        ("application/problem+json, application/json", "application/json"),
        ("model/obj;q=0, application/json;q=0.1", "application/json"),
    ],
)
def test_accept_is_read_as_http_says(accept: str, expected: str, client: TestClient, triple: Fields) -> None:
    response = client.post(ONE, files=triple, headers={"accept": accept})
    assert response.headers["content-type"] == expected


def test_a_batch_answers_each_face_by_itself(
    client: TestClient, triple: Fields, answer: dict[str, Any]
) -> None:
    files = {f"0.{name}": value for name, value in triple.items()}
    files |= {"1.front": b"no picture", "2.front": triple["front"]}
    response = client.post(MANY, files=files)
    assert response.status_code == 200, response.text
    items = response.json()["items"]
    assert [(item["index"], item["status"]) for item in items] == [(0, 200), (1, 415), (2, 200)]
    assert same(items[0]["reconstruction"], answer)
    assert items[1]["problem"]["field"] == "front"
    assert items[1]["problem"]["type"] == "urn:dfmvr:problem:not_a_picture"
    assert "reconstruction" not in items[1]
    assert len(items[2]["reconstruction"]["warnings"]) == 2


@pytest.mark.parametrize("asked", [{"params": {"format": "zip"}}, {"headers": {"accept": "application/zip"}}])
def test_a_batch_as_an_archive(asked: dict[str, Any], client: TestClient, triple: Fields) -> None:
    files = {"0.front": b"no picture", "1.front": triple["front"]}
    response = client.post(MANY, files=files, **asked)
    assert response.headers["content-type"] == "application/zip"
    assert sorted(archive_names(response.content)) == ["1.glb", "answer.json"]
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        items = json.loads(archive.read("answer.json"))["items"]
        mesh = trimesh.load(io.BytesIO(archive.read("1.glb")), file_type="glb", force="mesh")
    assert [item["status"] for item in items] == [415, 200]
    width = items[1]["reconstruction"]["sizes"]["face_width_mm"]
    assert width < 1000 * mesh.extents[0] < 1.3 * width


def test_the_model_is_described(client: TestClient, engine: Engine) -> None:
    model = client.get("/v1/model").json()
    assert len(model["weights_hash"]) == len(model["face_model_hash"]) == 64
    assert model["image_size"] == engine.predictor.image_size == SIZE
    assert model["views"] == list(VIEW_NAMES)
    assert model["formats"] == ["json", "glb", "obj", "ply"]
    assert model["landmarks"] == engine.finder_name
    assert model["vertices"] > 30_000
    assert model["licence"]


def test_it_lives_and_is_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_it_is_not_ready_before_it_has_started(engine: Engine) -> None:
    async def ask() -> Any:
        async with asking(endpoint_of(ServeSettings(keys="none"), engine)) as client:
            assert (await client.get("/healthz")).status_code == 200
            return await client.get("/readyz")

    response = asyncio.run(ask())
    problem(response, 503, "", "not_ready")
    assert response.headers["retry-after"] == "1"


def counts(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what /metrics says, as Prometheus reads it."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_counters_go_up(client: TestClient, triple: Fields) -> None:
    before = counts(client)
    client.post(ONE, files=triple)
    client.post(ONE, files={"front": b"x"})
    client.post(MANY, files={"0.front": triple["front"], "1.front": b"x"})
    after = counts(client)

    def rise(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before.get(key, 0.0)

    assert rise("dfmvr_requests_total", route="reconstructions", status="200") == 1
    assert rise("dfmvr_requests_total", route="reconstructions", status="415") == 1
    assert rise("dfmvr_requests_total", route="batch", status="200") == 1
    assert rise("dfmvr_rejects_total", reason="not_a_picture") == 2
    assert rise("dfmvr_request_seconds_count", route="reconstructions") == 2
    assert rise("dfmvr_stage_seconds_count", stage="predict") == 2
    assert rise("dfmvr_stage_seconds_sum", stage="predict") > 0
    assert after["dfmvr_requests_under_way", frozenset()] == 0
    assert not any(name.endswith("_created") for name, _ in after)


def test_a_key_gives_the_same_answer_again(client: TestClient, triple: Fields) -> None:
    done = client.endpoint.computed  # type: ignore[attr-defined]
    before, key = len(done), {"idempotency-key": "again"}
    first = client.post(ONE, files=triple, headers=key, params={"format": "glb"})
    second = client.post(ONE, files=triple, headers=key, params={"format": "glb"})
    assert len(done) == before + 1
    assert first.content == second.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    for name in ("content-type", "content-disposition", "content-length"):
        assert second.headers[name] == first.headers[name]


def test_a_key_belongs_to_one_request(client: TestClient, triple: Fields) -> None:
    key = {"idempotency-key": "mine"}
    assert client.post(ONE, files=triple, headers=key).status_code == 200
    others: list[dict[str, Any]] = [
        {"files": {"front": triple["front"]}},
        {"files": triple, "params": {"format": "glb"}},
        {"files": triple, "params": {"refine": "true"}},
        {"files": {**triple, "left": triple["right"], "right": triple["left"]}},
    ]
    for other in others:
        response = client.post(ONE, headers=key, **other)
        problem(response, 422, "Idempotency-Key", "key_reused")


def test_a_refusal_is_not_kept_for_its_key(client: TestClient, triple: Fields) -> None:
    key = {"idempotency-key": "mended"}
    problem(client.post(ONE, files={"front": b"x"}, headers=key), 415)
    assert client.post(ONE, files=triple, headers=key).status_code == 200


def held(endpoint: Endpoint) -> tuple[asyncio.Event, asyncio.Event]:
    """Make an endpoint's computing wait; return what tells that it has begun, and what lets it go on."""
    begun, go_on, compute = asyncio.Event(), asyncio.Event(), endpoint.compute

    async def waiting(views: PreparedViews) -> Face:
        begun.set()
        await go_on.wait()
        return await compute(views)

    endpoint.compute = waiting
    return begun, go_on


def test_two_requests_with_one_key_at_one_moment_are_computed_once(engine: Engine, triple: Fields) -> None:
    async def ask() -> None:
        endpoint = endpoint_of(ServeSettings(keys="none"), engine)
        begun, go_on = held(endpoint)
        async with asking(endpoint) as client:
            key = {"idempotency-key": "twins"}
            twins = [asyncio.create_task(client.post(ONE, files=triple, headers=key)) for _ in range(2)]
            await begun.wait()
            await asyncio.sleep(0.3)  # the second one waits for the first by now
            go_on.set()
            first, second = await asyncio.gather(*twins)
        assert first.status_code == second.status_code == 200
        assert first.content == second.content
        assert len(endpoint.computed) == 1  # type: ignore[attr-defined]

    asyncio.run(ask())


def test_a_full_queue_says_when_to_come_again(engine: Engine, triple: Fields) -> None:
    async def ask() -> None:
        endpoint = endpoint_of(ServeSettings(keys="none", queue=1), engine)
        begun, go_on = held(endpoint)
        async with asking(endpoint) as client:
            first = asyncio.create_task(client.post(ONE, files=triple))
            await begun.wait()
            refused = await client.post(ONE, files=triple)
            problem(refused, 503, "", "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            go_on.set()
            assert (await first).status_code == 200
            assert (await client.post(ONE, files=triple)).status_code == 200

    asyncio.run(ask())


def test_a_request_that_takes_too_long_is_given_up(engine: Engine, triple: Fields) -> None:
    async def ask() -> None:
        settings = ServeSettings(keys="none", queue=1, time_limit_s=1.0)
        endpoint = endpoint_of(settings, engine)
        _, go_on = held(endpoint)
        async with asking(endpoint) as client:
            late = await client.post(ONE, files=triple, headers={"idempotency-key": "late"})
            assert "within 1 s" in problem(late, 504, "", "time_limit")
            go_on.set()  # neither the queue nor the key is kept by the one that was given up
            endpoint.settings = replace(settings, time_limit_s=60.0)
            again = await client.post(ONE, files=triple, headers={"idempotency-key": "late"})
            assert again.status_code == 200

    asyncio.run(ask())


def test_a_mistake_is_told_to_the_log_and_not_to_the_client(
    engine: Engine, triple: Fields, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: PreparedViews) -> Face:
        raise RuntimeError("a secret of the house")

    async def ask() -> None:
        endpoint = endpoint_of(ServeSettings(keys="none"), engine)
        endpoint.compute = broken
        async with asking(endpoint) as client:
            response = await client.post(ONE, files=triple)
            problem(response, 500, "", "internal")
            assert "secret" not in response.text
            assert "RuntimeError" not in response.text
            metrics = (await client.get("/metrics")).text
        assert 'dfmvr_requests_total{route="reconstructions",status="500"} 1.0' in metrics

    with caplog.at_level(logging.ERROR):
        asyncio.run(ask())
    assert "a secret of the house" in caplog.text


def needs_dlib(engine: Engine) -> None:
    if engine.finder_name != "dlib":
        pytest.skip("dlib is not installed")


def test_a_raw_photograph_is_enough(client: TestClient, engine: Engine) -> None:
    needs_dlib(engine)
    content = client.post(ONE, files={"front": jpeg(ASTRONAUT)}).json()
    assert np.abs(eyes_of(content) - POINTS[:2]).max() < 8
    assert content["timings_ms"]["find"] > 1


@pytest.mark.parametrize("name", ["coffee", "noise"])
def test_a_picture_without_a_face_is_refused(name: str, client: TestClient, engine: Engine) -> None:
    needs_dlib(engine)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    image = skimage.data.coffee() if name == "coffee" else noise
    assert "none" in problem(client.post(ONE, files={"front": png(image)}), 422, "front", "no_face")


def test_a_picture_with_two_faces_is_refused(client: TestClient, engine: Engine) -> None:
    needs_dlib(engine)
    files = {"front": png(ASTRONAUT), "left": jpeg(np.hstack([ASTRONAUT, ASTRONAUT]))}
    assert "2" in problem(client.post(ONE, files=files), 422, "left", "several_faces")


def test_without_a_finder_a_photograph_needs_landmarks(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "finder_name", NO_FINDER)
    response = client.post(ONE, files={"front": png(ASTRONAUT)})
    assert f"{SIZE} x {SIZE}" in problem(response, 422, "front", "landmarks_missing")
    photograph(client, ASTRONAUT, POINTS)


_written: list[str] | None = None
"""Names of the files that are opened for writing, or created, while a test listens."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = arguments[1], arguments[2]
        if (mode and set(mode) & set("wax+")) or (mode is None and flags & 0x3):
            _written.append(str(arguments[0]))
    elif event.startswith("tempfile."):
        _written.append(f"{event} {arguments}")


sys.addaudithook(_listen)


def test_pictures_touch_neither_disk_nor_log(
    client: TestClient, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    global _written
    noise = np.random.default_rng(1).integers(0, 256, (1000, 1050, 3), np.uint8)
    pictures = {kind: picture_file(noise, kind) for kind in ("PNG", "TIFF", "BMP")}
    assert min(len(data) for data in pictures.values()) > 3_000_000  # beyond what Starlette keeps in memory
    data = {"landmarks": json.dumps({"front": POINTS})}
    client.post(ONE, files={"front": png(ASTRONAUT)}, data=data)  # what is loaded once is loaded now
    _written = []
    try:
        with caplog.at_level(logging.DEBUG):
            for picture in pictures.values():
                files = {"front": ("my-secret-holiday.png", picture, "image/png")}
                assert client.post(ONE, files=files, data=data).status_code == 200
                assert (
                    client.post(ONE, files=files | {"left": ("my-secret.png", picture[:5000])}).status_code
                    == 422
                )
        written = list(_written)
    finally:
        _written = None
    assert written == []
    assert "secret" not in caplog.text
    assert "PNG" not in caplog.text
    assert max((len(record.getMessage()) for record in caplog.records), default=0) < 1000
