"""The client against a small real HTTP server that fails as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve import client as module
from serve.client import Client, NoAnswer, RequestRefused, main


class Server(ThreadingHTTPServer):
    """Answers with the statuses of `plan` in turn, then with 200; 0 breaks the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[int] = []
        self.keys: list[str] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Idempotency-Key"])
        self.server.paths.append(self.path)
        status = self.server.plan.pop(0) if self.server.plan else 200
        if status == 0:
            self.connection.close()
            return
        body = b"answer" if status == 200 else json.dumps({"detail": "so it is"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(module.time, "sleep", seconds.append)
    return seconds


def test_it_tries_again_with_the_same_key(server: Server, waits: list[float]):
    server.plan = [500, 0, 503, 504]
    with Client(server.url) as client:
        assert client.reconstruct({"front": b"x"}) == b"answer"
    assert len(server.keys) == 5
    assert len(set(server.keys)) == 1
    assert waits[2] >= 1  # as Retry-After asks


def test_other_requests_have_other_keys(server: Server):
    with Client(server.url) as client:
        client.reconstruct({"front": b"x"})
        client.reconstruct({"front": b"x"})
    assert len(set(server.keys)) == 2


def test_what_is_refused_is_not_tried_again(server: Server):
    server.plan = [422]
    with Client(server.url) as client, pytest.raises(RequestRefused, match="422: so it is") as error:
        client.reconstruct({"front": b"x"})
    assert error.value.status == 422
    assert len(server.keys) == 1


def test_it_gives_up_and_says_what_came_last(server: Server):
    server.plan = [503] * 9
    with Client(server.url, tries=3) as client, pytest.raises(NoAnswer, match=r"3 tries.*503: so it is"):
        client.reconstruct({"front": b"x"})
    assert len(server.keys) == 3


def test_options_are_passed_on(server: Server, tmp_path: Path):
    picture = tmp_path / "me.jpg"
    picture.write_bytes(b"x")
    with Client(server.url) as client:
        client.reconstruct({"front": b"x"}, "ply", refine=True)
        assert client.avatar({"front": b"x"}, {"front": [[1, 2]] * 5}, "mine") == b"answer"
    for words in (["--out", "face.json"], ["--avatar", "--refine", "--out", "head.glb"]):
        assert main([str(picture), "--url", server.url, *words[:-1], str(tmp_path / words[-1])]) == 0
    assert server.paths == [
        "/v1/reconstructions?format=ply&refine=true",
        "/v1/avatars?refine=false",
        "/v1/reconstructions?format=json&refine=false",
        "/v1/avatars?refine=true",
    ]
    assert server.keys[1] == "mine"
    with pytest.raises(SystemExit):
        main([str(picture), "--avatar", "--out", str(tmp_path / "head.ply")])


def test_command_writes_the_answer(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "me.jpg"
    picture.write_bytes(b"x")
    assert main([str(picture), "--url", server.url, "--out", str(tmp_path / "face.glb")]) == 0
    assert (tmp_path / "face.glb").read_bytes() == b"answer"
    server.plan = [422]
    assert main([str(picture), "--url", server.url, "--out", str(tmp_path / "face.ply")]) == 2
    assert "422: so it is" in capsys.readouterr().err
    assert not (tmp_path / "face.ply").exists()
