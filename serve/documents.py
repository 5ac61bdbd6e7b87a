"""What the OpenAPI document says beside the schemas: bodies, examples, answers."""

from __future__ import annotations

from typing import Any

from dfmvr.types import VIEW_NAMES
from serve import schemas
from serve.problems import PROBLEM_TYPE, TITLES, Problem
from serve.uploads import FIELDS, LANDMARKS, MASKS

DESCRIPTION = """3D faces from one to three photographs.

    curl -F front=@front.jpg -F left=@left.jpg -F right=@right.jpg \\
         'http://127.0.0.1:8000/v1/reconstructions?format=glb' -o face.glb

    curl -F front=@front.jpg -F left=@left.jpg -F right=@right.jpg \\
         'http://127.0.0.1:8000/v1/avatars?refine=true' -o head.glb

`left` shows the subject's left side: the nose points to the picture's left. Pictures are kept in memory while
they are computed, and nowhere else."""
FORMAT = "json, glb, obj or ply; without it, the Accept header chooses"
REFINE = "fit each face to the 68 landmarks of its pictures, found or sent; JSON says whether that was done"
BATCH_FORMAT = "json; or zip: answer.json and a GLB for each face; without it, the Accept header chooses"
IDEMPOTENCY_KEY = "a key of your own: requests that repeat it get the first one's answer, computed once"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_VIEW_MEANINGS = {
    "left": "picture of the subject's left side (the nose points to the picture's left)",
    "front": "picture from the front",
    "right": "picture of the subject's right side (the nose points to the picture's right)",
}
_LANDMARKS_HELP = (
    "JSON: by view, 68 landmarks (iBUG order) or 5 points (right eye, left eye, tip of the nose, right and "
    'left corner of the mouth; the subject\'s right) as pairs of pixels: {"front": [[203, 101], ...]}'
)


_EXAMPLES = (
    Problem(400, "body: expected multipart/form-data, got: a body without its end", reason="bad_multipart"),
    Problem(401, "expected a key (Authorization: Bearer KEY), got none", "Authorization", "unauthorised"),
    Problem(406, "Accept: expected one of application/json, ..., got text/html", "Accept", "not_acceptable"),
    Problem(408, "expected the body within 20 s, got 31,000 bytes", reason="slow_body"),
    Problem(413, "expected a body of at most 40,000,000 bytes, got 52,428,800", reason="body_too_large"),
    Problem(413, "front: expected at most 50 megapixels, got 9000 x 9000", "front", "too_many_pixels"),
    Problem(
        415,
        "front: expected a picture (JPEG, PNG, WEBP, TIFF, BMP), got something else",
        "front",
        "not_a_picture",
    ),
    Problem(422, "expected the front view, got left, right", "front", "missing_front_view"),
    Problem(422, "front view: expected one face, found none", "front", "no_face"),
    Problem(422, "front view: expected one face, found 2", "front", "several_faces"),
    Problem(429, "expected at most 60 requests a minute, got more", reason="rate_limit"),
    Problem(500, "the server made a mistake; it has been logged", reason="internal"),
    Problem(
        503,
        "32 requests are under way, as many as this replica takes; try again",
        reason="queue_full",
    ),
    Problem(
        503,
        "as many heads as this replica takes (2) are under way; try again",
        reason="avatar_queue_full",
    ),
    Problem(504, "expected an answer within 30 s, got none", reason="time_limit"),
)
_RETRY_AFTER = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}}
_WAITING = (429, 503)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = schemas.ProblemBody.model_json_schema()

    def answer(status: int) -> dict[str, Any]:
        examples = {p.reason: {"value": p.body()} for p in _EXAMPLES if p.status == status}
        content = {PROBLEM_TYPE: {"schema": schema, "examples": examples}}
        headers = {"headers": _RETRY_AFTER} if status in _WAITING else {}
        return {"description": TITLES[status], "content": content, **headers}

    return {status: answer(status) for status in statuses}


def _field_schema(name: str) -> dict[str, Any]:
    if name == LANDMARKS:
        return {"type": "string", "description": _LANDMARKS_HELP}
    meaning = _VIEW_MEANINGS.get(name) or f"region labels 0-9 of {MASKS[name]}, as a grey PNG of its size"
    return {"type": "string", "format": "binary", "description": meaning}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_FACE = {
    "type": "object",
    "required": ["front"],
    "additionalProperties": False,
    "properties": {name: _field_schema(name) for name in FIELDS},
}
_FACES = {
    "type": "object",
    "required": ["0.front"],
    "description": "the fields of each face, with its index before: 0.front, 0.left, 1.front, ...",
    "properties": {f"0.{name}": _field_schema(name) for name in VIEW_NAMES},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_COMMON = (400, 401, 406, 408, 413, 415, 422, 429, 500, 503, 504)


def _answer(model: type[Any], **others: dict[str, Any]) -> dict[str, Any]:
    kinds = {name.replace("__", "/").replace("_", "-"): content for name, content in others.items()}
    return {"description": "Computed", "model": model, "content": kinds}


RECONSTRUCTION: dict[str, Any] = {
    "summary": "Reconstruct a face",
    "responses": {
        200: _answer(
            schemas.ReconstructionAnswer,
            model__gltf_binary=_BINARY,
            model__obj=_BINARY,
            application__ply=_BINARY,
        ),
        **_problems(*_COMMON),
    },
    "openapi_extra": _body(_FACE),
}
AVATAR: dict[str, Any] = {
    "summary": "Make an animatable head",
    "description": "The head with its neck, eyes, teeth and tongue, a texture, and 52 morph targets under "
    "ARKit's names; at most 6 MB. It takes seconds: a replica makes one at a time.\n\n"
    "    curl -F front=@front.jpg http://127.0.0.1:8000/v1/avatars -o head.glb",
    "responses": {
        200: {"description": "Made", "content": {"model/gltf-binary": _BINARY}},
        **_problems(*_COMMON),
    },
    "openapi_extra": _body(_FACE),
}
BATCH: dict[str, Any] = {
    "summary": "Reconstruct several faces",
    "responses": {200: _answer(schemas.BatchAnswer, application__zip=_BINARY), **_problems(*_COMMON)},
    "openapi_extra": _body(_FACES),
}
MODEL: dict[str, Any] = {"summary": "What computes", "responses": _problems(401, 500)}
HEALTH: dict[str, Any] = {"summary": "Whether it lives"}
READY: dict[str, Any] = {"summary": "Whether it is ready", "responses": _problems(503)}
METRICS: dict[str, Any] = {
    "summary": "Counters for Prometheus, summed over the replicas",
    "responses": {200: {"content": {"text/plain": {}}}, **_problems(401, 500)},
}
