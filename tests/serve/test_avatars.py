"""Animatable heads over HTTP: the file, the queue of their own, and the quick path beside them."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import trimesh
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dfmvr.cli import main
from serve.avatars import AvatarQueue
from serve.engine import Engine
from serve.problems import Problem
from serve.settings import ServeSettings
from tests.serve.conftest import Fields, asking, client_of, endpoint_of, problem

ONE, AVATARS = "/v1/reconstructions", "/v1/avatars"
MAX_BYTES = 6_000_000


class Slow:
    """Stands in for what makes heads: begins, waits to be let go, and ends."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.made = threading.Event(), threading.Event(), 0

    def __call__(self, *_: Any) -> bytes:
        self.begun.set()
        assert self.go_on.wait(60)
        self.made += 1
        return b"glTF of a head"


@pytest.fixture
def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(engine, "avatar_file", slow)
    return slow


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.01)


@pytest.mark.slow
def test_a_head_is_the_one_that_the_command_line_makes(
    client: TestClient, triple: Fields, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name, _, _ in triple.values()]
    for path, (_, data, _) in zip(paths, triple.values(), strict=True):
        path.write_bytes(data)
    response = client.post(AVATARS, files=triple)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "model/gltf-binary"
    assert response.headers["content-disposition"] == 'attachment; filename="head.glb"'
    assert len(response.content) < MAX_BYTES
    assert main(["avatar", *map(str, paths), "-o", str(tmp_path / "head.glb")]) == 0
    assert (tmp_path / "head.glb").read_bytes() == response.content
    mesh = trimesh.load(io.BytesIO(response.content), file_type="glb", force="mesh")
    assert 0.2 < mesh.extents[1] < 0.5, "the whole head, in metres"
    size = int.from_bytes(response.content[12:16], "little")
    names = json.loads(response.content[20 : 20 + size])["meshes"][0]["extras"]["targetNames"]
    assert len(names) == 52
    timed = [
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "dfmvr_stage_seconds_count" and sample.labels == {"stage": "avatar"}
    ]
    assert timed == [1.0]


def test_a_full_queue_of_heads_leaves_the_quick_path_open(engine: Engine, triple: Fields, slow: Slow) -> None:
    async def ask() -> None:
        endpoint = endpoint_of(ServeSettings(keys="none", avatar_queue=2), engine)
        async with asking(endpoint) as client:
            two = [asyncio.create_task(client.post(AVATARS, files=triple)) for _ in range(2)]
            await until(slow.begun)
            while endpoint.avatars is not None and endpoint.avatars._free._value:
                await asyncio.sleep(0.01)
            refused = await client.post(AVATARS, files=triple)
            assert "takes (2) are under way" in problem(refused, 503, "", "avatar_queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.post(ONE, files=triple)).status_code == 200
            slow.go_on.set()
            assert [(await task).content for task in two] == [b"glTF of a head"] * 2
            assert (await client.post(AVATARS, files=triple)).status_code == 200
            metrics = (await client.get("/metrics")).text
        assert 'dfmvr_requests_total{route="avatars",status="200"} 3.0' in metrics
        assert 'dfmvr_requests_total{route="avatars",status="503"} 1.0' in metrics
        assert 'dfmvr_stage_seconds_count{stage="avatar"} 3.0' in metrics

    asyncio.run(ask())


def test_a_head_that_is_given_up_keeps_its_place_until_its_thread_is_free(
    engine: Engine, triple: Fields, slow: Slow
) -> None:
    async def ask() -> None:
        settings = ServeSettings(keys="none", avatar_queue=1, avatar_time_limit_s=1.0)
        endpoint = endpoint_of(settings, engine)
        async with asking(endpoint) as client:
            late = await client.post(AVATARS, files=triple)
            problem(late, 504, "", "time_limit")
            problem(await client.post(AVATARS, files=triple), 503, "", "avatar_queue_full")
            slow.go_on.set()
            while not slow.made:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert (await client.post(AVATARS, files=triple)).status_code == 200

    asyncio.run(ask())


def test_a_head_that_waits_and_is_given_up_is_not_made() -> None:
    queue, slow = AvatarQueue(2), Slow()

    async def make() -> bytes:
        with queue.place() as start:
            return await start(slow)

    async def ask() -> None:
        first = asyncio.create_task(make())
        await until(slow.begun)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(make(), 0.05)
        slow.go_on.set()
        assert await first == b"glTF of a head"
        for _ in range(2):
            await make()

    asyncio.run(ask())
    assert slow.made == 3
    queue.close()


def test_a_place_is_free_again_when_nothing_came_of_it() -> None:
    queue = AvatarQueue(1)
    for _ in range(2):
        with pytest.raises(KeyError), queue.place():
            raise KeyError
    with queue.place(), pytest.raises(Problem, match=r"takes \(1\) are under way"), queue.place():
        pass
    queue.close()


def test_a_key_gives_the_same_head_again_and_other_options_conflict(
    engine: Engine, triple: Fields, slow: Slow
) -> None:
    slow.go_on.set()
    key = {"idempotency-key": "head"}
    with client_of(ServeSettings(keys="none"), engine) as client:
        first, second = (client.post(AVATARS, files=triple, headers=key) for _ in range(2))
        assert (slow.made, first.content) == (1, second.content)
        assert second.headers["idempotent-replayed"] == "true"
        for other in ({"params": {"refine": "true"}}, {"files": {"front": triple["front"]}}):
            response = client.post(AVATARS, headers=key, **({"files": triple} | other))
            problem(response, 422, "Idempotency-Key", "key_reused")
        problem(client.post(ONE, files=triple, headers=key), 422, "Idempotency-Key", "key_reused")


@pytest.mark.parametrize("why", ["none are wanted", "the face model has no head"])
def test_an_endpoint_may_make_no_heads(why: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 0 if why == "none are wanted" else 2
    if wanted:
        monkeypatch.setattr(engine.predictor.face_model, "expression_names", ("smile",) * 64)
    with client_of(ServeSettings(keys="none", avatar_queue=wanted), engine) as client:
        problem(client.post(AVATARS, files={}), 404, "", "not_found")
        assert AVATARS not in client.get("/openapi.json").json()["paths"]
