"""One replica's handling of requests: admission, stages, idempotency, counting; serve/api.py routes them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response

from dfmvr.predictor import Photo, PreparedViews
from serve import schemas
from serve.avatars import AvatarQueue
from serve.engine import Engine, Face
from serve.ledger import BEAT_S, Claim, StoredAnswer
from serve.problems import Problem
from serve.settings import ServeSettings
from serve.telemetry import Snapshot, Telemetry
from serve.uploads import read_photos

MEDIA_TYPES = {
    "json": "application/json",
    "glb": "model/gltf-binary",
    "obj": "model/obj",
    "ply": "application/ply",
}
"""By format; the first is the default."""
AVATAR_FILE = "head.glb"
RETRY_AFTER_S = 1
_LOG = logging.getLogger("serve.endpoint")

T = TypeVar("T")


class SharedLedger(Protocol):
    """What replicas share (serve/ledger.py), wherever it is."""

    async def claim(self, key: str, fingerprint: str, owner: str, patience_s: float) -> Claim:
        """See Book.claim."""
        ...

    async def settle(self, key: str, owner: str, answer: StoredAnswer | None) -> None:
        """See Book.settle."""
        ...

    async def take_token(self, name: str) -> float:
        """See Book.take_token."""
        ...

    async def beat(self, owner: str, counts: Snapshot) -> None:
        """See Book.beat."""
        ...

    async def exposition(self) -> bytes:
        """See Book.exposition."""
        ...


class Endpoint:
    """One replica's handling of requests.

    Args:
        settings: of the endpoint.
        engine: the model.
        compute: predicts one face, perhaps together with those of other requests.
        ledger: what replicas share.
    """

    def __init__(
        self,
        settings: ServeSettings,
        engine: Engine,
        compute: Callable[[PreparedViews], Awaitable[Face]],
        ledger: SharedLedger,
    ) -> None:
        self.settings, self.engine, self.compute, self.ledger = settings, engine, compute, ledger
        self.telemetry = Telemetry(settings.max_batch_size)
        self.name = uuid.uuid4().hex
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="engine")
        self.avatars = (
            AvatarQueue(settings.avatar_queue) if settings.avatar_queue and engine.animatable else None
        )
        self.ready = False
        self._under_way = 0

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do work in one of the replica's threads."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

    async def beat(self) -> None:
        """Tell the ledger that this replica lives, and what it has counted."""
        await self.ledger.beat(self.name, self.telemetry.snapshot())

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Beat while the replica lives."""

        async def keep_beating() -> None:
            while True:
                try:
                    await self.beat()
                except Exception:  # noqa: BLE001  the ledger may be starting anew: the next beat tells
                    _LOG.warning("the ledger does not answer", exc_info=True)
                await asyncio.sleep(BEAT_S)

        beating = asyncio.create_task(keep_beating())
        self.ready = True
        yield
        self.ready = False
        beating.cancel()
        self.pool.shutdown(wait=False)
        if self.avatars is not None:
            self.avatars.close()

    async def answer(
        self,
        request: Request,
        route: str,
        work: Callable[[], Awaitable[Response]],
        limit_s: float | None = None,
    ) -> Response:
        """Attempt a request's work; a problem becomes its response."""
        try:
            return await self.attempt(route, owner_of(request), work, limit_s)
        except Problem as problem:
            return problem.response()

    async def attempt(
        self, route: str, owner: str, work: Callable[[], Awaitable[T]], limit_s: float | None = None
    ) -> T:
        """Admit a request, do its work within the time limit, and count it.

        Args:
            route: under which it is counted.
            owner: the name of the key that it came with; empty without keys.
            work: what it asks for.
            limit_s: for it; None means the settings' `time_limit_s`.

        Raises:
            Problem: it is refused, or its work failed; an unexpected error is logged, and says nothing here.
        """
        start, status = monotonic(), 0
        try:
            result = await self._admitted(owner, work, limit_s or self.settings.time_limit_s)
            status = 200
            return result
        except Problem as problem:
            self.telemetry.rejects.labels(problem.reason).inc()
            status = problem.status
            raise
        except Exception as error:  # noqa: BLE001  it must be counted like the others
            status = 500
            raise unexpected(error) from None
        finally:
            if status:  # else the client has hung up
                self.telemetry.requests.labels(route, str(status)).inc()
                self.telemetry.latency.labels(route).observe(monotonic() - start)

    async def reconstruct(
        self, form: Mapping[str, bytes], kind: str, refine: bool = False
    ) -> tuple[Response, schemas.ReconstructionAnswer]:
        """Reconstruct one face; return it in a format, and as JSON's content."""
        timings: dict[str, float] = {}
        face, views = await self.face(form, timings, refine)
        if kind == "json":
            content = self.engine.answer(face, views, timings)
            return json_response(content), content
        with self.telemetry.stage("write", timings):
            data = await self.run(self.engine.mesh_file, face, kind)
        content = self.engine.answer(face, views, timings)
        return file_response(data, f"face.{kind}"), content

    async def face(
        self, form: Mapping[str, bytes], timings: dict[str, float], refine: bool = False
    ) -> tuple[Face, PreparedViews]:
        """Reconstruct one face from the fields of a request; add each stage's seconds to `timings`.

        Raises:
            Problem: a field cannot be used.
        """

        def see() -> PreparedViews:  # in one thread: each change of threads costs milliseconds
            return self._prepared(self._located(form, timings), timings)

        views = await self.run(see)
        return await self._predicted(views, timings, refine), views

    async def avatar(
        self, form: Mapping[str, bytes], timings: dict[str, float], refine: bool = False
    ) -> tuple[bytes, Face, PreparedViews]:
        """Make an animatable head (GLB) of one face, as `face` reconstructs it.

        Raises:
            Problem: a field cannot be used, or too many heads are under way.
        """
        assert self.avatars is not None
        with self.avatars.place() as make:
            photos = await self.run(self._located, form, timings)
            views = await self.run(self._prepared, photos, timings)
            face = await self._predicted(views, timings, refine)

            def build() -> bytes:
                with self.telemetry.stage("avatar", timings):
                    return self.engine.avatar_file(face, photos, views)

            return await make(build), face, views

    def _located(self, form: Mapping[str, bytes], timings: dict[str, float]) -> dict[str, Photo]:
        with self.telemetry.stage("read", timings):
            photos = read_photos(form, self.settings)
        with self.telemetry.stage("find", timings):
            return self.engine.locate(photos)

    def _prepared(self, photos: dict[str, Photo], timings: dict[str, float]) -> PreparedViews:
        with self.telemetry.stage("prepare", timings):
            return self.engine.prepare(photos)

    async def _predicted(self, views: PreparedViews, timings: dict[str, float], refine: bool) -> Face:
        with self.telemetry.stage("predict", timings):
            face = await self.compute(views)
        if not refine:
            return face
        with self.telemetry.stage("refine", timings):
            return await self.run(self.engine.refine, face, views)

    async def once(
        self,
        key: str,
        fingerprint: str,
        work: Callable[[], Awaitable[Response]],
        limit_s: float | None = None,
    ) -> Response:
        """Do work, within `limit_s`, unless another request with this key has done it, or is doing it.

        Raises:
            Problem: the key came with another request before.
        """
        patience_s = limit_s or self.settings.time_limit_s
        claim = await self.ledger.claim(key, fingerprint, self.name, patience_s)
        if claim.conflict:
            raise Problem(
                422,
                "Idempotency-Key: expected a new key, got that of another request",
                "Idempotency-Key",
                "key_reused",
            )
        if claim.answer is not None:
            replayed = dict(claim.answer.headers) | {"Idempotent-Replayed": "true"}
            return Response(claim.answer.body, claim.answer.status, replayed)
        answer = None
        try:
            response = await work()
            headers = tuple((k, v) for k, v in response.headers.items() if k != "content-length")
            answer = StoredAnswer(response.status_code, headers, bytes(response.body))
            return response
        finally:
            await asyncio.shield(self.ledger.settle(key, self.name, answer))

    async def _admitted(self, owner: str, work: Callable[[], Awaitable[T]], limit_s: float) -> T:
        if self._under_way >= self.settings.queue:
            raise Problem(
                503,
                f"{self._under_way} requests are under way, as many as this replica takes; try again",
                reason="queue_full",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._under_way += 1
        self.telemetry.under_way.inc()
        try:
            async with asyncio.timeout(limit_s):
                await self._check_rate(owner)
                return await work()
        except TimeoutError:
            raise Problem(
                504,
                f"expected an answer within {limit_s:g} s, got none",
                reason="time_limit",
            ) from None
        finally:
            self._under_way -= 1
            self.telemetry.under_way.dec()

    async def _check_rate(self, owner: str) -> None:
        wait = await self.ledger.take_token(owner) if owner and self.settings.requests_per_minute else 0.0
        if wait > 0:
            limit = f"{self.settings.requests_per_minute:g} requests a minute"
            raise Problem(
                429,
                f"expected at most {limit}, got more",
                reason="rate_limit",
                headers={"Retry-After": str(int(wait) + 1)},
            )


def owner_of(request: Request) -> str:
    """Return the name of the key that a request came with; empty without keys."""
    return str(request.scope.get("state", {}).get("key", ""))


def file_response(data: bytes, name: str) -> Response:
    """Return a file, as a response that is saved under a name; its ending tells the format."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, headers=headers, media_type=MEDIA_TYPES[name.rpartition(".")[2]])


def json_response(content: schemas.ReconstructionAnswer | schemas.BatchAnswer) -> Response:
    """Return content as a JSON response."""
    return Response(content.model_dump_json(exclude_none=True), media_type="application/json")


def unexpected(error: Exception) -> Problem:
    """Log what should not have happened; the client learns nothing of it."""
    _LOG.error("request failed", exc_info=error)
    return Problem(500, "the server made a mistake; it has been logged", reason="internal")
