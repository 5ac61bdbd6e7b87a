"""Keys: who is let in, how they are kept, and how often each may ask."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from serve import keys as module
from serve.engine import Engine
from serve.keys import VARIABLE, KeyRing, KeysError, is_loopback, keys_wanted
from serve.settings import ServeSettings
from tests.serve.conftest import Fields, client_of, problem

ONE = "/v1/reconstructions"
KEY = "dfmvr_the-key-of-ada"
RING = KeyRing({"ada": hashlib.sha256(KEY.encode()).hexdigest(), "bob": hashlib.sha256(b"bob's").hexdigest()})


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def guarded(engine: Engine) -> Any:
    with client_of(ServeSettings(requests_per_minute=6), engine, RING) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()}


@pytest.mark.parametrize("headers", [bearer(KEY), basic(KEY), {"authorization": f"bearer   {KEY} "}])
def test_a_key_lets_in(headers: dict[str, str], guarded: TestClient) -> None:
    assert guarded.get("/v1/model", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "came"),
    [
        ({}, "none"),
        ({"authorization": ""}, "none"),
        ({"authorization": "Bearer"}, "none"),
        ({"authorization": KEY}, "none"),
        (bearer("dfmvr_another"), "an unknown one"),
        (bearer(KEY + "x"), "an unknown one"),
        (bearer(KEY[:-1]), "an unknown one"),
        (bearer(KEY.upper()), "an unknown one"),
        (bearer(digest(KEY)), "an unknown one"),
        ({"authorization": "Basic !!!"}, "none"),
        ({"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()}, "none"),
        (basic("wrong"), "an unknown one"),
        ({"authorization": f"Digest {KEY}"}, "none"),
        ({"authorization": "Bearer \xe9\xff".encode("latin-1")}, "an unknown one"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/openapi.json", "/", "/nothing", "/healthz/"])
def test_others_stay_outside(path: str, headers: Any, came: str, guarded: TestClient) -> None:
    response = guarded.get(path, headers=headers)
    assert problem(response, 401, "Authorization", "unauthorised").endswith(f"got {came}")
    kind = "Bearer" if path.startswith("/v1/") else 'Basic realm="dfmvr", charset="UTF-8"'
    assert response.headers["www-authenticate"] == kind


def test_nobody_computes_without_a_key(guarded: TestClient, triple: Fields) -> None:
    problem(guarded.post(ONE, files=triple), 401, "Authorization")
    assert not guarded.endpoint.computed  # type: ignore[attr-defined]


def test_health_is_open(guarded: TestClient) -> None:
    assert guarded.get("/healthz").status_code == guarded.get("/readyz").status_code == 200


def test_websockets_stay_outside_too(guarded: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, guarded.websocket_connect("/queue"):
        pass
    assert closed.value.code == 1008  # against the policy, not merely missing


def test_a_refused_body_is_not_read(guarded: TestClient) -> None:
    """A stranger's gigabytes are not taken in before the key is looked at."""

    def endless() -> Any:
        raise AssertionError("it was read")
        yield b""

    problem(guarded.post(ONE, content=endless()), 401)


def test_each_key_has_its_rate(guarded: TestClient) -> None:
    """A request counts even if it is a bad one; another key's do not."""
    answers = [guarded.post(ONE, headers=bearer(KEY), files={"front": b"x"}) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [415] * 6 + [429]
    detail = problem(answers[-1], 429, "", "rate_limit")
    assert "6 requests a minute" in detail
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 11
    assert guarded.post(ONE, headers=bearer("bob's"), files={"front": b"x"}).status_code == 415


def test_keys_of_clients_do_not_meet_in_the_ledger(engine: Engine, triple: Fields) -> None:
    """Two clients may choose the same Idempotency-Key: neither sees the other's answer."""
    with client_of(ServeSettings(), engine, RING) as client:
        ada, bob = ({**bearer(key), "idempotency-key": "1"} for key in (KEY, "bob's"))
        assert client.post(ONE, headers=ada, files=triple).status_code == 200
        other = client.post(ONE, headers=bob, files={"front": triple["front"]})
        assert other.status_code == 200
        assert "idempotent-replayed" not in other.headers


def test_comparison_takes_the_same_time_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared, whole and by hmac, whether or not an earlier one has fitted."""
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    for key in (KEY, "bob's", "nobody's"):
        compared.clear()
        RING.owner(key)
        assert compared == [(32, 32)] * 2
    assert module.hmac is hmac


@pytest.mark.parametrize(
    ("mode", "host", "wanted"),
    [
        *(("auto", host, False) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *(("auto", host, True) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", None)),
        *(("required", "127.0.0.1", True), ("none", "0.0.0.0", False)),
    ],
)
def test_keys_are_asked_for_unless_only_this_machine_can_ask(
    mode: str, host: str | None, wanted: bool
) -> None:
    assert keys_wanted(mode, host) is wanted
    if mode == "auto":
        assert is_loopback(host) is not wanted


def test_keys_come_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the lab's\n\n  ada:{digest('a')}  \nbob:{digest('b')}\n")
    monkeypatch.setenv(VARIABLE, f"cid:{digest('c')}\ndan:{digest('d')}")
    ring = KeyRing.load(str(path))
    assert [ring.owner(key) for key in "abcde"] == ["ada", "bob", "cid", "dan", None]
    monkeypatch.delenv(VARIABLE)
    assert len(KeyRing.load(str(path))) == 2
    assert len(KeyRing.load("")) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"dfmvr_a-key-itself\n", "line 1: expected NAME:SHA-256"),
        (f"ada:{digest('a')}\nbob:123\n".encode(), "line 2: expected NAME:SHA-256"),
        (f"ada:{digest('a').upper()}\n".encode(), "line 1: expected NAME:SHA-256"),
        (f"a da:{digest('a')}\n".encode(), "line 1: expected NAME:SHA-256"),
        (
            f"ada:{digest('a')}\nada:{digest('b')}\n".encode(),
            "line 2: expected each name once, got ada again",
        ),
        (b"\xff\xfe\x00", "expected text"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_something_else_stops_the_start(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeysError, match=words) as raised:
        KeyRing.load(str(path))
    assert str(path) in str(raised.value)
    assert "dfmvr_a-key-itself" not in str(raised.value)  # it may end in a log


def test_a_wrong_line_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"ada:{digest('a')} oops")
    with pytest.raises(KeysError, match=f"{VARIABLE}, line 2"):
        KeyRing.load("")


def test_the_command_makes_keys_that_let_in(tmp_path: Path) -> None:
    def made(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve.keys", "new", name]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first, second = made("ada"), made("ada")
    (key, line), (other, _) = (
        [text.rpartition(": ")[2] for text in process.stdout.splitlines()] for process in (first, second)
    )
    assert key != other
    assert len(key) > 40
    assert key not in line
    (tmp_path / "keys").write_text(line)
    assert KeyRing.load(str(tmp_path / "keys")).owner(key) == "ada"
    wrong = made("a name")
    assert wrong.returncode == 2
    assert "NAME: expected" in wrong.stderr
