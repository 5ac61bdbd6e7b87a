"""The application on a real Ray Serve, over TLS: two replicas, one of which is killed, and an update."""

from __future__ import annotations

import contextlib
import datetime
import io
import ipaddress
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trimesh
from prometheus_client.parser import text_string_to_metric_families

import serve.app
from dfmvr.predictor import NOT_REFINED
from serve.app import build
from serve.client import Client, RequestRefused
from serve.keys import KeysError
from serve.settings import ServeSettings

pytestmark = [pytest.mark.ray, pytest.mark.serve]
SETTINGS: dict[str, Any] = {
    "min_replicas": 2,
    "max_replicas": 2,
    "cpus": 0.5,
    "keys": "required",
    "page": False,
    "landmarks": "none",
    "max_body_mb": 2,
}
CHUNK, MUCH = 100_000, 100_000_000
Pictures = dict[str, bytes]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1; its key lies beside it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def url(ray_cluster: None, certificate: Path, key: str, keys_file: Path) -> Iterator[str]:
    """The endpoint's address: two replicas, keys, TLS."""
    from ray import serve as ray_serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_serve.start(
        http_options={
            "host": "127.0.0.1",
            "port": port,
            "ssl_certfile": str(certificate),
            "ssl_keyfile": str(certificate.with_name("key.pem")),
        }
    )
    deploy(keys_file=str(keys_file))
    yield f"https://127.0.0.1:{port}"
    ray_serve.shutdown()


@pytest.fixture(scope="module")
def key() -> str:
    return "dfmvr_test-key-of-nobody"


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory, key: str) -> Path:
    import hashlib

    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may come in\ntester:{hashlib.sha256(key.encode()).hexdigest()}\n")
    return path


@pytest.fixture
def client(url: str, key: str, certificate: Path) -> Iterator[Client]:
    with Client(url, key, tries=8, verify=str(certificate)) as client:
        yield client


@pytest.fixture(scope="module")
def pictures(triple: dict[str, tuple[str, bytes, str]]) -> Pictures:
    return {name: data for name, (_, data, _) in triple.items()}


def deploy(**changes: Any) -> None:
    from ray import serve as ray_serve

    ray_serve.run(build(SETTINGS | changes), name="dfmvr", route_prefix="/")


def test_a_client_gets_json_and_a_mesh_over_tls(client: Client, pictures: Pictures):
    answer = json.loads(client.reconstruct(pictures))
    assert len(answer["landmarks_3d"]) == 68
    mesh = trimesh.load(io.BytesIO(client.reconstruct(pictures, "glb")), file_type="glb", force="mesh")
    assert len(mesh.vertices) > 30_000
    assert client.model()["weights_hash"] == answer["weights_hash"]
    asked = json.loads(client.reconstruct(pictures, refine=True))
    assert asked["warnings"] == [*answer["warnings"], NOT_REFINED], "crops have no landmarks"


@pytest.mark.slow
def test_a_client_gets_a_head_over_tls(client: Client, pictures: Pictures):
    head = client.avatar(pictures)
    assert head.startswith(b"glTF")
    assert b"tongueOut" in head


def test_without_a_key_only_health_is_open(url: str, certificate: Path):
    with Client(url, verify=str(certificate)) as stranger:
        with pytest.raises(RequestRefused, match="401: expected a key"):
            stranger.reconstruct({"front": b""})
        assert stranger._http.get("/healthz").json() == {"status": "ok"}
        assert stranger._http.get("/metrics").status_code == 401


def test_a_certificate_that_is_not_trusted_is_refused(url: str):
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{url}/healthz")


def test_a_body_is_refused_while_it_arrives(url: str, key: str, certificate: Path):
    """A stream without an announced length gets its answer at the limit, long before its end."""
    head = (
        "POST /v1/reconstructions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="front"; filename="f"\r\n\r\n'
    context = ssl.create_default_context(cafile=certificate)
    address = ("127.0.0.1", httpx.URL(url).port or 0)
    sent, answer = 0, b""
    with context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1") as stream:
        stream.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(part), part))
        while not answer and sent < MUCH:
            stream.settimeout(10)
            with contextlib.suppress(ConnectionError):  # refused so firmly that the rest is not taken
                stream.sendall(b"%x\r\n%b\r\n" % (CHUNK, bytes(CHUNK)))
            sent += CHUNK
            stream.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                answer = stream.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent <= MUCH / 5


def test_counters_are_summed_over_replicas(client: Client, pictures: Pictures):
    def count() -> float:
        families = text_string_to_metric_families(client._http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(
            s.value
            for s in samples
            if s.name == "dfmvr_requests_total" and s.labels == {"route": "reconstructions", "status": "200"}
        )

    def settled() -> float:
        """Replicas tell of their counts each second: what earlier tests have asked may still come."""
        now, then = count(), -1.0
        while now != then:
            time.sleep(2.5)
            now, then = count(), now
        return now

    before = settled()
    for _ in range(8):
        client.reconstruct(pictures)
    deadline = time.monotonic() + 10
    while count() < before + 8 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert count() == before + 8


def test_a_key_of_a_request_is_computed_once_by_either_replica(client: Client, pictures: Pictures):
    answers = {client.reconstruct(pictures, idempotency_key="the same") for _ in range(6)}
    assert len(answers) == 1  # timings would differ


def test_a_killed_replica_costs_no_reconstruction(client: Client, pictures: Pictures):
    failures, done = under_load(client, pictures, kill_a_replica)
    assert not failures
    assert done > 10


def test_an_update_costs_no_reconstruction(client: Client, pictures: Pictures, keys_file: Path):
    failures, done = under_load(client, pictures, lambda: deploy(keys_file=str(keys_file), max_batch_size=4))
    assert not failures
    assert done > 10


def test_without_keys_it_only_listens_on_loopback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DFMVR_SERVE_KEYS", raising=False)
    monkeypatch.setattr(serve.app, "_listening_host", lambda: "127.0.0.1")
    assert serve.app._key_ring(ServeSettings()) is None
    for host in ("0.0.0.0", None):
        monkeypatch.setattr(serve.app, "_listening_host", lambda host=host: host)
        with pytest.raises(KeysError, match="expected keys"):
            serve.app._key_ring(ServeSettings())
    assert serve.app._key_ring(ServeSettings(keys="none")) is None


def under_load(client: Client, pictures: Pictures, work: Callable[[], None]) -> tuple[list[Exception], int]:
    """Do some work while three threads ask; return what failed, and how much did not."""
    failures: list[Exception] = []
    done, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                client.reconstruct(pictures)
                done.append(1)
            except (OSError, ValueError, httpx.HTTPError) as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    work()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join()
    return failures, len(done)


def kill_a_replica() -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            ours = path.read_bytes().startswith(b"ray::ServeReplica:dfmvr:Reconstructions")
        except OSError:
            continue
        if ours:
            os.kill(int(path.parent.name), signal.SIGKILL)
            return
    raise AssertionError("no replica runs")
