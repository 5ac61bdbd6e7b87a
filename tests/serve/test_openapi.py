"""The OpenAPI document: what it names, and whether the endpoint keeps to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks
from starlette.testclient import TestClient

from serve.engine import Engine
from serve.schemas import ProblemBody
from tests.serve.conftest import SIZE, png

ONE, MANY, AVATARS = "/v1/reconstructions", "/v1/reconstructions:batch", "/v1/avatars"
REFUSALS = {"400", "401", "406", "408", "413", "415", "422", "429", "500", "503", "504"}
OPERATIONS = {
    "POST /v1/reconstructions": 40,
    "POST /v1/reconstructions:batch": 40,
    "POST /v1/avatars": 20,
    "GET /v1/model": 10,
    "GET /healthz": 10,
    "GET /readyz": 10,
    "GET /metrics": 10,
}
"""With the number of requests made up for each."""
MODES = list(schemathesis.GenerationMode)
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

_noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
_files = st.sampled_from([png(_noise), png(_noise[..., 0] % 10), b"", b"\xff\xd8\xff\xe0"]) | st.binary(
    max_size=200
)
schemathesis.openapi.format("binary", _files)


class Running:
    """An application that has started already: schemathesis would start and stop it for each request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
        else:
            await self.app(scope, receive, send)


@pytest.fixture(scope="module", autouse=True)
def heads_at_once(engine: Engine) -> Iterator[None]:
    """What is asked for here are answers; heads would take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "avatar_file", lambda *_: b"glTF")
        yield


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


@pytest.fixture(scope="module")
def operations(client: TestClient) -> dict[str, Any]:
    """What schemathesis makes requests for, by name."""
    loaded = schemathesis.openapi.from_asgi("/openapi.json", Running(client.app))
    found = (result.ok() for result in loaded.get_all_operations())
    return {operation.label: operation for operation in found}


def test_no_operation_is_left_out(operations: dict[str, Any]) -> None:
    assert set(operations) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, mode) for label in OPERATIONS for mode in MODES if mode.is_positive or label.startswith("POST")],
    ids=lambda value: getattr(value, "value", value),
)
def test_whatever_is_sent_the_answer_is_as_documented(
    label: str, mode: schemathesis.GenerationMode, operations: dict[str, Any], client: TestClient
) -> None:
    operation, statuses = operations[label], Counter[int]()

    @settings(
        max_examples=OPERATIONS[label],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code in (503, 504), case.as_curl_command()
        case.validate_response(response, checks=CHECKS)

    ask()
    assert statuses[200 if label.startswith("GET") else 422]


@pytest.mark.parametrize(
    ("label", "field"), [(f"POST {ONE}", "front"), (f"POST {MANY}", "0.front"), (f"POST {AVATARS}", "front")]
)
def test_a_good_request_is_answered_as_documented(label: str, field: str, operations: dict[str, Any]) -> None:
    case = operations[label].Case(body={field: png(_noise)}, media_type="multipart/form-data")
    response = case.call()
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("path", [ONE, MANY, AVATARS])
def test_every_refusal_is_documented_with_examples(path: str, document: dict[str, Any]) -> None:
    responses = document["paths"][path]["post"]["responses"]
    assert set(responses) == REFUSALS | {"200"}
    for status in REFUSALS:
        content = responses[status]["content"]["application/problem+json"]
        examples = [example["value"] for example in content["examples"].values()]
        assert examples
        for example in examples:
            assert ProblemBody.model_validate(example).status == int(status)
    for status in ("429", "503"):
        assert "Retry-After" in responses[status]["headers"]
    reasons = set(responses["422"]["content"]["application/problem+json"]["examples"])
    assert reasons >= {"no_face", "several_faces", "missing_front_view"}


def test_every_format_is_documented(document: dict[str, Any]) -> None:
    one = document["paths"][ONE]["post"]["responses"]["200"]["content"]
    assert set(one) == {"application/json", "model/gltf-binary", "model/obj", "application/ply"}
    many = document["paths"][MANY]["post"]["responses"]["200"]["content"]
    assert set(many) == {"application/json", "application/zip"}
    head = document["paths"][AVATARS]["post"]["responses"]
    assert set(head["200"]["content"]) == {"model/gltf-binary"}
    assert "avatar_queue_full" in head["503"]["content"]["application/problem+json"]["examples"]
    for path, named in ((ONE, {"format"}), (MANY, {"format"}), (AVATARS, set())):
        parameters = {item["name"].lower() for item in document["paths"][path]["post"]["parameters"]}
        assert parameters == named | {"refine", "idempotency-key"}


def test_every_field_is_documented(document: dict[str, Any]) -> None:
    body = document["paths"][ONE]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert (
        document["paths"][AVATARS]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"] == body
    )
    views = {"left", "front", "right"}
    assert set(body["properties"]) == views | {f"{view}_mask" for view in views} | {"landmarks"}
    assert body["required"] == ["front"]
    assert all(field["description"] for field in body["properties"].values())
    answer = document["components"]["schemas"]["ReconstructionAnswer"]["properties"]
    assert answer["timings_ms"]["examples"]
    assert answer["warnings"]["examples"]
    assert "curl" in document["info"]["description"]


def test_an_example_is_what_the_endpoint_says(client: TestClient, document: dict[str, Any]) -> None:
    """Examples are written by hand: those that are easily provoked are compared."""

    def examples(status: int) -> dict[str, Any]:
        content = document["paths"][ONE]["post"]["responses"][str(status)]["content"]
        return dict(content["application/problem+json"]["examples"])

    sides = {name: png(_noise) for name in ("left", "right")}
    said = client.post(ONE, files=sides).json()
    assert said == examples(422)["missing_front_view"]["value"]
    said = client.post(ONE, files={"front": b"x"}).json()
    assert said == examples(415)["not_a_picture"]["value"]
    black = png(np.zeros((100, 100, 3), np.uint8))
    if client.get("/v1/model").json()["landmarks"] == "dlib":
        assert client.post(ONE, files={"front": black}).json() == examples(422)["no_face"]["value"]


def test_the_document_sends_nobody_to_other_hosts(client: TestClient) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
