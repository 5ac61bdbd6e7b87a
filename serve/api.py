"""The HTTP routes: limits, keys, idempotency and formats around the engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from dfmvr import __version__
from dfmvr.predictor import PreparedViews
from dfmvr.types import Reconstruction
from serve import documents, schemas
from serve.engine import Engine
from serve.keys import KeyCheck, KeyRing
from serve.ledger import BEAT_S, Claim, StoredAnswer
from serve.limits import BodyLimits
from serve.problems import PROBLEM_TYPE, Problem, handle_problem
from serve.settings import ServeSettings
from serve.telemetry import Snapshot, Telemetry
from serve.uploads import read_form, read_photos, split_items

MEDIA_TYPES = {
    "json": "application/json",
    "glb": "model/gltf-binary",
    "obj": "model/obj",
    "ply": "application/ply",
}
"""By format; the first is the default."""
BATCH_MEDIA_TYPES = {"json": "application/json", "zip": "application/zip"}
MAX_KEY_LENGTH = 200
RETRY_AFTER_S = 1
_LOG = logging.getLogger("serve.api")

Format = Literal["json", "glb", "obj", "ply"]
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
        compute: Callable[[PreparedViews], Awaitable[Reconstruction]],
        ledger: SharedLedger,
    ) -> None:
        self.settings, self.engine, self.compute, self.ledger = settings, engine, compute, ledger
        self.telemetry = Telemetry(settings.max_batch_size)
        self.name = uuid.uuid4().hex
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="engine")
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

    async def answer(self, request: Request, route: str, work: Callable[[], Awaitable[Response]]) -> Response:
        """Attempt a request's work; a problem becomes its response."""
        try:
            return await self.attempt(route, owner_of(request), work)
        except Problem as problem:
            return problem.response()

    async def attempt(self, route: str, owner: str, work: Callable[[], Awaitable[T]]) -> T:
        """Admit a request, do its work within the time limit, and count it.

        Args:
            route: under which it is counted.
            owner: the name of the key that it came with; empty without keys.
            work: what it asks for.

        Raises:
            Problem: it is refused, or its work failed; an unexpected error is logged, and says nothing here.
        """
        start, status = monotonic(), 0
        try:
            result = await self._admitted(owner, work)
            status = 200
            return result
        except Problem as problem:
            self.telemetry.rejects.labels(problem.reason).inc()
            status = problem.status
            raise
        except Exception as error:  # noqa: BLE001  it must be counted like the others
            status = 500
            raise _unexpected(error) from None
        finally:
            if status:  # else the client has hung up
                self.telemetry.requests.labels(route, str(status)).inc()
                self.telemetry.latency.labels(route).observe(monotonic() - start)

    async def reconstruct(
        self, form: Mapping[str, bytes], kind: str
    ) -> tuple[Response, schemas.ReconstructionAnswer]:
        """Reconstruct one face; return it in a format, and as JSON's content."""
        timings: dict[str, float] = {}
        face, views = await self.face(form, timings)
        if kind == "json":
            content = self.engine.answer(face, views, timings)
            return _json(content), content
        with self.telemetry.stage("write", timings):
            data = await self.run(self.engine.mesh_file, face, kind)
        content = self.engine.answer(face, views, timings)
        headers = {"Content-Disposition": f'attachment; filename="face.{kind}"'}
        return Response(data, headers=headers, media_type=MEDIA_TYPES[kind]), content

    async def face(
        self, form: Mapping[str, bytes], timings: dict[str, float]
    ) -> tuple[Reconstruction, PreparedViews]:
        """Reconstruct one face from the fields of a request; add each stage's seconds to `timings`.

        Raises:
            Problem: a field cannot be used.
        """
        views = await self.run(self._views, form, timings)
        with self.telemetry.stage("predict", timings):
            return await self.compute(views), views

    def _views(self, form: Mapping[str, bytes], timings: dict[str, float]) -> PreparedViews:
        """Do the stages before the network, in one thread: each change of threads costs milliseconds."""
        stage = self.telemetry.stage
        with stage("read", timings):
            photos = read_photos(form, self.settings)
        with stage("find", timings):
            photos = self.engine.locate(photos)
        with stage("prepare", timings):
            return self.engine.prepare(photos)

    async def once(self, key: str, fingerprint: str, work: Callable[[], Awaitable[Response]]) -> Response:
        """Do work unless another request with this key has done it, or is doing it.

        Raises:
            Problem: the key came with another request before.
        """
        claim = await self.ledger.claim(key, fingerprint, self.name, self.settings.time_limit_s)
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

    async def _admitted(self, owner: str, work: Callable[[], Awaitable[T]]) -> T:
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
            async with asyncio.timeout(self.settings.time_limit_s):
                await self._check_rate(owner)
                return await work()
        except TimeoutError:
            raise Problem(
                504,
                f"expected an answer within {self.settings.time_limit_s:g} s, got none",
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


def build_api(endpoint: Endpoint, ring: KeyRing | None) -> tuple[FastAPI, ASGIApp]:
    """Return the routes, and what answers requests: the routes behind limits and keys.

    Args:
        endpoint: that does the work.
        ring: the keys; None lets everybody in.
    """
    settings = endpoint.settings
    app = FastAPI(
        title="dfmvr",
        version=__version__,
        description=documents.DESCRIPTION,
        lifespan=endpoint.lifespan,
        docs_url=None,  # these pages load their scripts from other hosts
        redoc_url=None,
    )
    _add_routes(app, endpoint)
    app.add_exception_handler(Problem, handle_problem)
    app.add_exception_handler(RequestValidationError, _handle_invalid)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(Exception, _handle_unexpected)
    guarded: ASGIApp = BodyLimits(app, int(settings.max_body_mb * 1e6), settings.body_timeout_s)
    if ring is not None:
        guarded = KeyCheck(guarded, ring)
    return app, guarded


def _add_routes(app: FastAPI, endpoint: Endpoint) -> None:
    engine, settings = endpoint.engine, endpoint.settings

    @app.post("/v1/reconstructions", **documents.RECONSTRUCTION)
    async def reconstruct(
        request: Request,
        format: Annotated[Format | None, Query(description=documents.FORMAT)] = None,
        idempotency_key: Annotated[str | None, Header(description=documents.IDEMPOTENCY_KEY)] = None,
    ) -> Response:
        async def work() -> Response:
            kind = format or chosen_format(request.headers.get("accept", ""), MEDIA_TYPES)
            form = await read_form(request, settings)

            async def compute() -> Response:
                return (await endpoint.reconstruct(form, kind))[0]

            return await _perhaps_once(endpoint, request, idempotency_key, form, kind, compute)

        return await endpoint.answer(request, "reconstructions", work)

    @app.post("/v1/reconstructions:batch", **documents.BATCH)
    async def reconstruct_batch(
        request: Request,
        format: Annotated[Literal["json", "zip"] | None, Query(description=documents.BATCH_FORMAT)] = None,
        idempotency_key: Annotated[str | None, Header(description=documents.IDEMPOTENCY_KEY)] = None,
    ) -> Response:
        async def work() -> Response:
            kind = format or chosen_format(request.headers.get("accept", ""), BATCH_MEDIA_TYPES)
            form = await read_form(request, settings, settings.max_batch_items)

            async def compute() -> Response:
                return await _batch(endpoint, form, kind)

            return await _perhaps_once(endpoint, request, idempotency_key, form, kind, compute)

        return await endpoint.answer(request, "batch", work)

    @app.get("/v1/model", **documents.MODEL)
    async def model() -> schemas.ModelAnswer:
        return engine.describe(__version__, list(MEDIA_TYPES))

    @app.get("/healthz", **documents.HEALTH)
    async def healthz() -> schemas.Status:
        return schemas.Status(status="ok")

    @app.get("/readyz", **documents.READY)
    async def readyz() -> schemas.Status:
        if not endpoint.ready:
            raise Problem(503, "the model is being loaded", reason="not_ready", headers={"Retry-After": "1"})
        return schemas.Status(status="ready")

    @app.get("/metrics", **documents.METRICS)
    async def metrics() -> Response:
        await endpoint.beat()
        return Response(await endpoint.ledger.exposition(), media_type=documents.PROMETHEUS)


async def _perhaps_once(
    endpoint: Endpoint,
    request: Request,
    key: str | None,
    form: Mapping[str, bytes],
    kind: str,
    compute: Callable[[], Awaitable[Response]],
) -> Response:
    if key is None:
        return await compute()
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Problem(
            422,
            f"Idempotency-Key: expected 1 to {MAX_KEY_LENGTH} characters, got {len(key)}",
            "Idempotency-Key",
            "bad_idempotency_key",
        )
    digest = hashlib.sha256(f"{request.url.path} {kind}".encode())
    for name in sorted(form):
        part = form[name]
        digest.update(f"|{name}|{len(part)}|".encode() + part)
    return await endpoint.once(f"{owner_of(request)}:{key}", digest.hexdigest(), compute)


async def _batch(endpoint: Endpoint, form: Mapping[str, bytes], kind: str) -> Response:
    """Reconstruct several faces; each fails by itself."""
    mesh = "json" if kind == "json" else "glb"

    async def one(index: int, item: Mapping[str, bytes]) -> tuple[schemas.BatchItem, bytes]:
        try:
            response, content = await endpoint.reconstruct(item, mesh)
        except Problem as problem:
            endpoint.telemetry.rejects.labels(problem.reason).inc()
            body = schemas.ProblemBody(**problem.body())
            return schemas.BatchItem(index=index, status=problem.status, problem=body), b""
        return schemas.BatchItem(index=index, status=200, reconstruction=content), bytes(response.body)

    items = split_items(form, endpoint.settings.max_batch_items)
    done = await asyncio.gather(*(one(index, item) for index, item in items))
    answer = schemas.BatchAnswer(items=[item for item, _ in done])
    if kind == "json":
        return _json(answer)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("answer.json", answer.model_dump_json(exclude_none=True))
        for item, data in done:
            if data:
                archive.writestr(f"{item.index}.{mesh}", data)
    return Response(packed.getvalue(), media_type=BATCH_MEDIA_TYPES["zip"])


def chosen_format(accept: str, offered: Mapping[str, str]) -> str:
    """Return the offered format that an Accept header likes best; the first one where it does not care.

    Raises:
        Problem: it takes none of them.
    """
    default = next(iter(offered))
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept.split(",")):
        media, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        if media and weight > 0:
            wishes.append((-weight, place, media))
    if not accept.strip():
        return default
    for _, _, media in sorted(wishes):
        if media in ("*/*", "application/*", PROBLEM_TYPE):
            return default
        for name, kind in offered.items():
            if media == kind or media == f"{kind.partition('/')[0]}/*":
                return name
    raise Problem(
        406,
        f"Accept: expected one of {', '.join(offered.values())}, got {accept[:200]}",
        "Accept",
        "not_acceptable",
    )


def _json(content: schemas.ReconstructionAnswer | schemas.BatchAnswer) -> Response:
    return Response(content.model_dump_json(exclude_none=True), media_type="application/json")


async def _handle_invalid(_: Request, error: Exception) -> Response:
    """Answer a query or header that FastAPI found wrong."""
    assert isinstance(error, RequestValidationError)
    first: Mapping[str, Any] = error.errors()[0]
    field = str(first["loc"][-1])
    return Problem(422, f"{field}: {first['msg']}", field, "bad_parameter").response()


async def _handle_http(_: Request, error: Exception) -> Response:
    """Answer a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return Problem(error.status_code, str(error.detail), reason=reason, headers=error.headers).response()


async def _handle_unexpected(_: Request, error: Exception) -> Response:
    """Answer what should not have happened."""
    return _unexpected(error).response()


def _unexpected(error: Exception) -> Problem:
    """Log what should not have happened; the client learns nothing of it."""
    _LOG.error("request failed", exc_info=error)
    return Problem(500, "the server made a mistake; it has been logged", reason="internal")
