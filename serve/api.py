"""The HTTP routes: limits, keys, idempotency and formats around the engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from dfmvr import __version__
from serve import documents, schemas
from serve.endpoint import (
    AVATAR_FILE,
    MEDIA_TYPES,
    Endpoint,
    file_response,
    json_response,
    owner_of,
    unexpected,
)
from serve.keys import KeyCheck, KeyRing
from serve.limits import BodyLimits
from serve.problems import PROBLEM_TYPE, Problem, handle_problem
from serve.uploads import read_form, split_items

BATCH_MEDIA_TYPES = {"json": "application/json", "zip": "application/zip"}
MAX_KEY_LENGTH = 200


Format = Literal["json", "glb", "obj", "ply"]
Refine = Annotated[bool, Query(description=documents.REFINE)]
IdempotencyKey = Annotated[str | None, Header(description=documents.IDEMPOTENCY_KEY)]


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
    if endpoint.avatars is not None:
        _add_avatars(app, endpoint)
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
        refine: Refine = False,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        async def work() -> Response:
            kind = format or chosen_format(request.headers.get("accept", ""), MEDIA_TYPES)
            form = await read_form(request, settings)

            async def compute() -> Response:
                return (await endpoint.reconstruct(form, kind, refine))[0]

            return await _perhaps_once(endpoint, request, idempotency_key, form, f"{kind} {refine}", compute)

        return await endpoint.answer(request, "reconstructions", work)

    @app.post("/v1/reconstructions:batch", **documents.BATCH)
    async def reconstruct_batch(
        request: Request,
        format: Annotated[Literal["json", "zip"] | None, Query(description=documents.BATCH_FORMAT)] = None,
        refine: Refine = False,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        async def work() -> Response:
            kind = format or chosen_format(request.headers.get("accept", ""), BATCH_MEDIA_TYPES)
            form = await read_form(request, settings, settings.max_batch_items)

            async def compute() -> Response:
                return await _batch(endpoint, form, kind, refine)

            return await _perhaps_once(endpoint, request, idempotency_key, form, f"{kind} {refine}", compute)

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


def _add_avatars(app: FastAPI, endpoint: Endpoint) -> None:
    """Add a route of its own: it has its own limit and pace, and elsewhere `model/gltf-binary` is a face."""
    limit_s = endpoint.settings.avatar_time_limit_s

    @app.post("/v1/avatars", response_class=Response, **documents.AVATAR)
    async def make_avatar(
        request: Request, refine: Refine = False, idempotency_key: IdempotencyKey = None
    ) -> Response:
        async def work() -> Response:
            chosen_format(request.headers.get("accept", ""), {"glb": MEDIA_TYPES["glb"]})
            form = await read_form(request, endpoint.settings)

            async def compute() -> Response:
                data, _, _ = await endpoint.avatar(form, {}, refine)
                return file_response(data, AVATAR_FILE)

            options = f"refine={refine}"
            return await _perhaps_once(endpoint, request, idempotency_key, form, options, compute, limit_s)

        return await endpoint.answer(request, "avatars", work, limit_s)


async def _perhaps_once(
    endpoint: Endpoint,
    request: Request,
    key: str | None,
    form: Mapping[str, bytes],
    options: str,
    compute: Callable[[], Awaitable[Response]],
    limit_s: float | None = None,
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
    digest = hashlib.sha256(f"{request.url.path} {options}".encode())
    for name in sorted(form):
        part = form[name]
        digest.update(f"|{name}|{len(part)}|".encode() + part)
    return await endpoint.once(f"{owner_of(request)}:{key}", digest.hexdigest(), compute, limit_s)


async def _batch(endpoint: Endpoint, form: Mapping[str, bytes], kind: str, refine: bool) -> Response:
    """Reconstruct several faces; each fails by itself."""
    mesh = "json" if kind == "json" else "glb"

    async def one(index: int, item: Mapping[str, bytes]) -> tuple[schemas.BatchItem, bytes]:
        try:
            response, content = await endpoint.reconstruct(item, mesh, refine)
        except Problem as problem:
            endpoint.telemetry.rejects.labels(problem.reason).inc()
            body = schemas.ProblemBody(**problem.body())
            return schemas.BatchItem(index=index, status=problem.status, problem=body), b""
        return schemas.BatchItem(index=index, status=200, reconstruction=content), bytes(response.body)

    items = split_items(form, endpoint.settings.max_batch_items)
    done = await asyncio.gather(*(one(index, item) for index, item in items))
    answer = schemas.BatchAnswer(items=[item for item, _ in done])
    if kind == "json":
        return json_response(answer)
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
    return unexpected(error).response()
