"""What went wrong with a request, told as problem details (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

PROBLEM_TYPE = "application/problem+json"

TITLES = {
    400: "Bad request",
    401: "Key missing or unknown",
    404: "Not found",
    405: "Method not allowed",
    406: "Format not available",
    408: "Request too slow",
    413: "Too large",
    415: "Unsupported content",
    422: "Cannot be used",
    429: "Too many requests",
    500: "Internal error",
    503: "Busy",
    504: "Time limit",
}


class Problem(Exception):
    """A request that is refused.

    Args:
        status: of the HTTP response.
        detail: what was expected and what came.
        field: the field of the request that is to blame; empty where none is.
        reason: a few words in snake case, for programs and for counting.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        field: str = "",
        reason: str = "bad_request",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field, self.reason = status, detail, field, reason
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the problem details."""
        body: dict[str, Any] = {
            "type": f"urn:dfmvr:problem:{self.reason}",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        return body | ({"field": self.field} if self.field else {})

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(json.dumps(self.body()), self.status, self.headers, media_type=PROBLEM_TYPE)


async def handle_problem(_: Request, problem: Exception) -> Response:
    """Answer a request whose handling raised a Problem."""
    assert isinstance(problem, Problem)
    return problem.response()
