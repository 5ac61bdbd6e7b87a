"""An endpoint in this process, without Ray: the same routes, limits and engine as a replica's."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.predictor import PreparedViews
from dfmvr.types import VIEW_NAMES
from serve.api import build_api
from serve.endpoint import Endpoint
from serve.engine import Engine, Face
from serve.ledger import BEAT_S, Book, Claim, StoredAnswer
from serve.settings import ServeSettings
from serve.telemetry import Snapshot

SIZE = 64
POINTS = [[203, 101], [247, 104], [224, 125], [203, 140], [246, 141]]
Fields = dict[str, Any]


class LocalLedger:
    """The Book, in this process."""

    def __init__(self, settings: ServeSettings) -> None:
        self.book = Book(
            settings.idempotency_minutes, int(settings.idempotency_mb * 1e6), settings.requests_per_minute
        )

    async def claim(self, key: str, fingerprint: str, owner: str, patience_s: float) -> Claim:
        return await self.book.claim(key, fingerprint, owner, patience_s)

    async def settle(self, key: str, owner: str, answer: StoredAnswer | None) -> None:
        self.book.settle(key, owner, answer)

    async def take_token(self, name: str) -> float:
        return self.book.take_token(name)

    async def beat(self, owner: str, counts: Snapshot) -> None:
        self.book.beat(owner, counts)

    async def exposition(self) -> bytes:
        return self.book.exposition()


def endpoint_of(settings: ServeSettings, engine: Engine) -> Endpoint:
    async def compute(views: PreparedViews) -> Face:
        computed.append(views)
        return (await endpoint.run(engine.predict, [views]))[0]

    computed: list[PreparedViews] = []
    engine.settings = settings
    endpoint = Endpoint(settings, engine, compute, LocalLedger(settings))
    endpoint.computed = computed  # type: ignore[attr-defined]  # for the tests to count
    return endpoint


def client_of(settings: ServeSettings, engine: Engine, ring: Any = None) -> TestClient:
    endpoint = endpoint_of(settings, engine)
    client = TestClient(build_api(endpoint, ring)[1], raise_server_exceptions=False)
    client.endpoint = endpoint  # type: ignore[attr-defined]
    return client


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The shipped model, with dlib where it is installed."""
    engine = Engine(ServeSettings())
    engine.warm_up()
    return engine


@pytest.fixture(scope="session")
def client(engine: Engine) -> Iterator[TestClient]:
    """A client of an endpoint without keys, with small limits."""
    settings = ServeSettings(
        max_body_mb=4, max_megapixels=8, time_limit_s=30, avatar_time_limit_s=120, keys="none"
    )
    with client_of(settings, engine) as client:
        yield client


@pytest.fixture(scope="session")
def triple() -> Fields:
    """Three crops of a synthetic person as PNG, ready to be posted."""
    settings = SyntheticSettings(n_subjects=1, image_size=SIZE, split_shares=(1.0, 0.0, 0.0))
    images = render_sample(settings, 5, 0, 0).images
    return {
        name: (f"{name}.png", png(image), "image/png") for name, image in zip(VIEW_NAMES, images, strict=True)
    }


def png(image: np.ndarray) -> bytes:
    pixels = image[..., ::-1] if image.ndim == 3 else image
    return bytes(cv2.imencode(".png", pixels)[1])


def jpeg(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".jpg", image[..., ::-1])[1])


def picture_file(image: np.ndarray, kind: str, **options: Any) -> bytes:
    """Write a picture as Pillow does: JPEG, TIFF, ..., with EXIF data and the like."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return data.getvalue()


@asynccontextmanager
async def asking(endpoint: Endpoint) -> AsyncIterator[httpx.AsyncClient]:
    """A client that asks for several things at once, of a replica that beats but has not started."""

    async def keep_beating() -> None:
        while True:
            await endpoint.beat()
            await asyncio.sleep(BEAT_S / 4)

    beating = asyncio.create_task(keep_beating())
    transport = httpx.ASGITransport(build_api(endpoint, None)[1], raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    beating.cancel()


def problem(
    response: httpx.Response, status: int, field: str | None = None, reason: str | None = None
) -> str:
    """Check that a response is a problem; return its detail."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    body = json.loads(response.text)
    assert body["status"] == status
    assert body["title"]
    assert body["type"].startswith("urn:dfmvr:problem:")
    if field is not None:
        assert body.get("field", "") == field
    if reason is not None:
        assert body["type"].rpartition(":")[2] == reason
    return str(body["detail"])


def archive_names(data: bytes) -> list[str]:
    import zipfile

    return zipfile.ZipFile(io.BytesIO(data)).namelist()
