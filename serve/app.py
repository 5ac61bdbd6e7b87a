"""The Serve application: `serve run serve.app:build key=value ...`, or `serve deploy serve/config.yaml`."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from dfmvr.predictor import PreparedViews
from dfmvr.threads import use_threads
from serve.api import build_api
from serve.batching import Batcher
from serve.endpoint import Endpoint
from serve.engine import Engine, Face
from serve.keys import KeyRing, KeysError, keys_wanted
from serve.ledger import Book, Claim, StoredAnswer
from serve.settings import ServeSettings, parse_settings
from serve.telemetry import Snapshot

WAITING_FACTOR = 8
"""Ray hands a replica up to this many times its queue; the replica tells the excess that it is busy."""
DRAIN_S = 60.0
HEALTH_PERIOD_S = 10.0
_LOG = logging.getLogger("serve.app")


def build(args: dict[str, Any]) -> Application:
    """Return the application.

    Args:
        args: ServeSettings by name.

    Raises:
        SettingsError: a name or a value is wrong.
    """
    settings = parse_settings(args)
    ledger = Ledger.bind(  # type: ignore[attr-defined]  # the decorators' types hide what they add
        settings.idempotency_minutes, int(settings.idempotency_mb * 1e6), settings.requests_per_minute
    )
    scaled: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        scaled = {
            "autoscaling_config": {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.target_ongoing_requests,
            }
        }
    application: Application = Reconstructions.options(  # type: ignore[attr-defined]
        **scaled,
        max_ongoing_requests=WAITING_FACTOR * settings.queue,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    ).bind(settings, ledger)
    return application


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=10_000,
    logging_config={"enable_access_log": False},
)
class Ledger:
    """The Book of serve/ledger.py as a deployment of its own, without a model."""

    def __init__(self, minutes: float, max_bytes: int, requests_per_minute: float) -> None:
        self._book = Book(minutes, max_bytes, requests_per_minute)

    async def claim(self, key: str, fingerprint: str, owner: str, patience_s: float) -> Claim:
        """See Book.claim."""
        return await self._book.claim(key, fingerprint, owner, patience_s)

    async def settle(self, key: str, owner: str, answer: StoredAnswer | None) -> None:
        """See Book.settle."""
        self._book.settle(key, owner, answer)

    async def take_token(self, name: str) -> float:
        """See Book.take_token."""
        return self._book.take_token(name)

    async def beat(self, owner: str, counts: Snapshot) -> None:
        """See Book.beat."""
        self._book.beat(owner, counts)

    async def exposition(self) -> bytes:
        """See Book.exposition."""
        return self._book.exposition()


class RemoteLedger:
    """The Ledger, asked through its handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def claim(self, key: str, fingerprint: str, owner: str, patience_s: float) -> Claim:
        """See Book.claim."""
        claim: Claim = await self._handle.claim.remote(key, fingerprint, owner, patience_s)
        return claim

    async def settle(self, key: str, owner: str, answer: StoredAnswer | None) -> None:
        """See Book.settle."""
        await self._handle.settle.remote(key, owner, answer)

    async def take_token(self, name: str) -> float:
        """See Book.take_token."""
        return float(await self._handle.take_token.remote(name))

    async def beat(self, owner: str, counts: Snapshot) -> None:
        """See Book.beat."""
        await self._handle.beat.remote(owner, counts)

    async def exposition(self) -> bytes:
        """See Book.exposition."""
        return bytes(await self._handle.exposition.remote())


@serve.deployment(
    health_check_period_s=HEALTH_PERIOD_S,
    health_check_timeout_s=3 * HEALTH_PERIOD_S,
    graceful_shutdown_timeout_s=DRAIN_S,
    graceful_shutdown_wait_loop_s=1.0,
)
@serve.ingress()
class Reconstructions:
    """A replica: model and HTTP in one process.

    Args:
        settings: of the endpoint.
        ledger: what the replicas share.
    """

    def __init__(self, settings: ServeSettings, ledger: DeploymentHandle) -> None:
        use_threads(max(1, int(settings.cpus)))
        self._settings = settings
        self._ring = _key_ring(settings)
        self._engine = Engine(settings)
        self._engine.warm_up()
        self._compute_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        batched = Batcher(self._compute, settings.max_batch_size, settings.batch_wait_ms / 1000)
        self._endpoint = Endpoint(settings, self._engine, batched, RemoteLedger(ledger))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build what answers requests; Serve calls this in the replica."""
        app, guarded = build_api(self._endpoint, self._ring)
        if self._settings.page:
            from serve.page import mount_page

            mount_page(app, self._endpoint)
        return guarded

    async def check_health(self) -> None:
        """Compute a face; Serve replaces a replica that fails to."""
        await asyncio.get_running_loop().run_in_executor(self._compute_thread, self._engine.check)

    async def _compute(self, views: list[PreparedViews]) -> list[Face]:
        self._endpoint.telemetry.batches.observe(len(views))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compute_thread, self._engine.predict, views)


def _key_ring(settings: ServeSettings) -> KeyRing | None:
    """Return the keys, or None where requests need none.

    Raises:
        KeysError: requests need a key, and there is none.
    """
    host = _listening_host()
    if not keys_wanted(settings.keys, host):
        return None
    ring = KeyRing.load(settings.keys_file)
    if not len(ring):
        raise KeysError(
            f"Serve listens on {host or 'an unknown address'}: expected keys (keys_file, or DFMVR_SERVE_KEYS)"
            ", got none; python -m serve.keys new NAME makes one, keys=none lets everybody in"
        )
    return ring


def _listening_host() -> str | None:
    """Return the address that Serve's proxies listen on; None where it cannot be told."""
    from ray.serve.context import _get_global_client

    try:
        return str(_get_global_client().http_config.host)  # type: ignore[union-attr]
    except Exception:  # noqa: BLE001  not a public interface: without an answer, keys are asked for
        _LOG.warning("cannot tell the address that Serve listens on", exc_info=True)
        return None
