"""A client of the endpoint that tries again without computing twice.

    python -m serve.client left.jpg front.jpg right.jpg --out face.glb
    python -m serve.client me.jpg --url https://faces.example.org --refine --out face.json
    python -m serve.client me.jpg --avatar --out head.glb

The key comes from the environment variable DFMVR_SERVE_KEY, never from the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from dfmvr.files import write_atomic
from dfmvr.types import FRONT, VIEW_NAMES

KEY_VARIABLE = "DFMVR_SERVE_KEY"
FORMATS = ("json", "glb", "obj", "ply")
RETRIED = frozenset({429, 500, 502, 503, 504})
"""Ray answers 500 for a request whose replica dies under it."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
USER_ERROR = 2


class RequestRefused(ValueError):
    """The endpoint refused a request; `problem` holds its problem details."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {problem.get('detail', 'no reason given')}")
        self.status, self.problem = status, dict(problem)


class NoAnswer(ConnectionError):
    """The endpoint gave no answer, however often it was asked."""


class Client:
    """Asks an endpoint for faces.

    Args:
        url: of the endpoint.
        key: that lets one in; None without keys.
        tries: of one request, the first included.
        timeout_s: of one try.
        verify: False, or a file of certificates, for a self-signed certificate.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        tries: int = 6,
        timeout_s: float = 60.0,
        verify: bool | str = True,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        context: Any = verify
        if isinstance(verify, str):
            import ssl

            context = ssl.create_default_context(cafile=verify)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, verify=context)
        self._tries = tries

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def reconstruct(
        self,
        pictures: Mapping[str, bytes],
        kind: str = "json",
        landmarks: Mapping[str, Sequence[Sequence[float]]] | None = None,
        idempotency_key: str | None = None,
        refine: bool = False,
    ) -> bytes:
        """Reconstruct a face.

        Args:
            pictures: files by view (left, front, right) or mask (front_mask, ...).
            kind: one of FORMATS.
            landmarks: by view, 68 or 5 pairs of pixels; None lets the endpoint look for the face.
            idempotency_key: of an earlier call whose answer was lost; None makes a new one.
            refine: fit the face to 68 landmarks, found or given; JSON's `refined` says whether that was done.

        Returns:
            The answer: JSON or a mesh file.

        Raises:
            RequestRefused: the request cannot be used.
            NoAnswer: the endpoint does not answer.
        """
        parameters: dict[str, str | bool] = {"format": kind, "refine": refine}
        return self._send("/v1/reconstructions", parameters, pictures, landmarks, idempotency_key)

    def avatar(
        self,
        pictures: Mapping[str, bytes],
        landmarks: Mapping[str, Sequence[Sequence[float]]] | None = None,
        idempotency_key: str | None = None,
        refine: bool = False,
    ) -> bytes:
        """Make an animatable head (GLB), which takes seconds.

        Args:
            pictures: as `reconstruct` takes them, and so all others.
            landmarks: by view.
            idempotency_key: of an earlier call.
            refine: fit the face to its landmarks first.

        Raises:
            RequestRefused: the request cannot be used, or this endpoint makes no heads (404).
            NoAnswer: the endpoint does not answer.
        """
        return self._send("/v1/avatars", {"refine": refine}, pictures, landmarks, idempotency_key)

    def _send(
        self,
        path: str,
        parameters: Mapping[str, str | bool],
        pictures: Mapping[str, bytes],
        landmarks: Mapping[str, Sequence[Sequence[float]]] | None,
        idempotency_key: str | None,
    ) -> bytes:
        files = {name: (name, data, "application/octet-stream") for name, data in pictures.items()}
        data = {} if landmarks is None else {"landmarks": json.dumps(landmarks)}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._post(path, params=parameters, files=files, data=data, headers=headers).content

    def model(self) -> dict[str, Any]:
        """Return what the endpoint computes with.

        Raises:
            RequestRefused: it asks for a key.
        """
        response = self._http.get("/v1/model")
        if response.status_code != httpx.codes.OK:
            raise RequestRefused(response.status_code, _problem(response))
        content: dict[str, Any] = response.json()
        return content

    def _post(self, path: str, **request: Any) -> httpx.Response:
        """Post until there is an answer: what is asked for may be asked for again."""
        wait, last = FIRST_WAIT_S, "nothing"
        for attempt in range(1, self._tries + 1):
            asked_to_wait = 0.0
            try:
                response = self._http.post(path, **request)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == httpx.codes.OK:
                    return response
                if response.status_code not in RETRIED:
                    raise RequestRefused(response.status_code, _problem(response))
                last = f"{response.status_code}: {_problem(response).get('detail', '')}"
                asked_to_wait = _seconds(response.headers.get("Retry-After", ""))
            if attempt < self._tries:
                time.sleep(max(asked_to_wait, wait * random.uniform(0.5, 1.0)))
                wait = min(2 * wait, LONGEST_WAIT_S)
        raise NoAnswer(
            f"{self._http.base_url}{path}: no answer in {self._tries} tries; the last came to: {last}"
        )


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {"detail": response.text[:200]}


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Reconstruct a face from picture files; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", type=Path, nargs="+", help="the front view; or left, front and right")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the endpoint (%(default)s)")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust, for a self-signed one")
    parser.add_argument("--out", type=Path, required=True, help=f"ends in .{', .'.join(FORMATS)}")
    parser.add_argument("--refine", action="store_true", help="fit the face to the pictures' 68 landmarks")
    parser.add_argument("--avatar", action="store_true", help="an animatable head (.glb), instead of a face")
    options = parser.parse_args(arguments)
    names = {1: (FRONT,), len(VIEW_NAMES): VIEW_NAMES}.get(len(options.pictures))
    if names is None:
        parser.error(f"expected one picture or three (left, front, right), got {len(options.pictures)}")
    kind = options.out.suffix.removeprefix(".")
    offered = ("glb",) if options.avatar else FORMATS
    if kind not in offered:
        parser.error(f"--out: expected a name that ends in .{', .'.join(offered)}, got {options.out}")
    try:
        pictures = {name: path.read_bytes() for name, path in zip(names, options.pictures, strict=True)}
        with Client(options.url, os.environ.get(KEY_VARIABLE), verify=options.ca or True) as client:
            if options.avatar:
                data = client.avatar(pictures, refine=options.refine)
            else:
                data = client.reconstruct(pictures, kind, refine=options.refine)
            write_atomic(options.out, data)
    except (RequestRefused, OSError) as error:
        print(f"serve.client: error: {error}", file=sys.stderr)
        return USER_ERROR
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
