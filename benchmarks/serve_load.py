"""The endpoint under load: its share of the bare model's rate, what it adds, what comes above saturation.

    python -m benchmarks.serve_load [--seconds 20] [--requests 5000]

Everything runs on this machine: a Ray Serve of its own, and the clients beside it, which share the cores with
the model. `predictor` is the Predictor in one process with the replica's number of threads, on decoded
pictures, meshes included; `bare` leaves out the meshes, as JSON answers do; `bare_beside_busy` is that while
programs that only count keep the other cores busy: what the cores share (caches, clock, execution units of
hyperthreads) is lost to anything that runs beside the model.
In turn: one client; as many as fill the batches (in rounds with the bare model); 80 % of that rate; far
more than fits; one client while another has heads made, which takes seconds each; `--requests` requests
while the replica's memory is read; two replicas while one is killed, and while the application is deployed
anew. Each phase's figures go to stderr when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import cv2
import numpy as np
import ray
from ray import serve

from benchmarks.common import report
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.predictor import Photo, Predictor
from dfmvr.threads import use_threads
from dfmvr.types import VIEW_NAMES, ViewBatch
from serve.app import build
from serve.engine import Engine
from serve.settings import ServeSettings

PORT = 8765
URL = f"http://127.0.0.1:{PORT}/v1/reconstructions"
AVATARS_URL = f"http://127.0.0.1:{PORT}/v1/avatars"
BATCH = 8
CLIENTS = 2 * BATCH
"""Enough that the next batch is full when one ends."""
QUEUE = 32
TIME_LIMIT_S = 10.0
OVERLOAD_CLIENTS = 96
PEOPLE = 4
TRIES = 8
SEED = 31


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase (%(default)g)")
    parser.add_argument("--requests", type=int, default=5000, help="while memory is read (%(default)d)")
    options = parser.parse_args()
    use_threads(1)  # as the replica does
    photos = draw_people()
    bodies = [encode(images) for images in photos]
    metrics: dict[str, float] = {}

    def add(found: dict[str, float]) -> None:
        metrics.update(found)
        print({name: round(value, 3) for name, value in found.items()}, file=sys.stderr, flush=True)

    with endpoint(replicas=1):
        add(in_rounds(bodies, photos, options.seconds))
        add(steady(bodies, 0.8 * metrics["served_per_second"], options.seconds))
        add(overload(bodies, options.seconds))
        add(beside_avatars(bodies, options.seconds))
        add(memory(bodies, options.requests))
    with endpoint(replicas=2):
        add(killed(bodies, options.seconds))
        add(rolled(bodies, options.seconds))
    metrics["failed_after_retries"] = metrics["failed_after_kill"] + metrics["failed_after_update"]
    report(
        "serve_load",
        {name: round(value, 3) for name, value in metrics.items()},
        batch=BATCH,
        clients=CLIENTS,
        seconds=options.seconds,
        requests=options.requests,
    )


def draw_people() -> list[dict[str, np.ndarray]]:
    """Return crops of some synthetic people, by view, at the size that the model takes."""
    size = Predictor.load().image_size
    settings = SyntheticSettings(n_subjects=PEOPLE, image_size=size, split_shares=(1.0, 0.0, 0.0))
    samples = [render_sample(settings, SEED, person, 0) for person in range(PEOPLE)]
    return [dict(zip(VIEW_NAMES, sample.images, strict=True)) for sample in samples]


@dataclass(frozen=True)
class Body:
    """A multipart body, written once."""

    content: bytes
    kind: str


def encode(images: dict[str, np.ndarray]) -> Body:
    """Write a request's body as a client does."""
    boundary = uuid.uuid4().hex
    parts = b""
    for name, image in images.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\n'
        parts += head.encode() + bytes(cv2.imencode(".png", image[..., ::-1])[1]) + b"\r\n"
    return Body(parts + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")


@contextmanager
def endpoint(replicas: int) -> Iterator[None]:
    """Start the endpoint in a Ray of its own."""
    ray.init(
        address="local",
        num_cpus=replicas + 1,
        object_store_memory=250 * 2**20,
        log_to_driver=False,
        include_dashboard=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        deploy(replicas)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(replicas: int, **changes: Any) -> None:
    """Deploy the application, or deploy it anew; returns when it is up."""
    settings = {
        "min_replicas": replicas,
        "max_replicas": replicas,
        "max_batch_size": BATCH,
        "queue": QUEUE,
        "time_limit_s": TIME_LIMIT_S,
        "page": False,
        **changes,
    }
    serve.run(build(settings), name="dfmvr", route_prefix="/")


# The phases


def in_rounds(bodies: list[Body], photos: list[dict[str, np.ndarray]], seconds: float) -> dict[str, float]:
    """Bare model and endpoint in turn, at a batch of one and at full batches."""
    engine = Engine(ServeSettings(landmarks="none"))
    inputs = [{name: Photo(image) for name, image in images.items()} for images in photos]
    rounds = 4
    whole, bare, beside, served, alone, asked = [], [], [], [], [], []
    for _ in range(rounds):
        whole.append(bare_rate(engine, inputs, BATCH, seconds / rounds, meshes=True))
        bare.append(bare_rate(engine, inputs, BATCH, seconds / rounds))
        with busy_cores():
            beside.append(bare_rate(engine, inputs, BATCH, seconds / rounds))
        served.append(asyncio.run(closed_loop(bodies, CLIENTS, seconds / rounds)).rate)
        alone.append(1 / bare_rate(engine, inputs, 1, seconds / rounds / 2))
        asked.append(statistics.median(asyncio.run(closed_loop(bodies, 1, seconds / rounds / 2)).latencies))

    def over(rates: list[float]) -> float:
        return statistics.median(s / b for s, b in zip(served, rates, strict=True))

    return {
        "predictor_per_second": statistics.median(whole),
        "bare_per_second": statistics.median(bare),
        "bare_beside_busy_per_second": statistics.median(beside),
        "served_per_second": statistics.median(served),
        "throughput_ratio": over(whole),
        "throughput_ratio_same_work": over(bare),
        "throughput_ratio_beside_busy": over(beside),
        "bare_p50_ms": 1e3 * statistics.median(alone),
        "p50_ms": 1e3 * statistics.median(asked),
        "p50_added_ms": 1e3 * statistics.median(a - b for a, b in zip(asked, alone, strict=True)),
    }


def steady(bodies: list[Body], rate: float, seconds: float) -> dict[str, float]:
    """A steady rate below saturation: no request may fail."""
    result = asyncio.run(open_loop(bodies, rate, seconds))
    return {
        "steady_offered_per_second": rate,
        "steady_served_per_second": result.rate,
        "steady_p99_ms": 1e3 * quantile(result.latencies, 0.99),
        "status_5xx_below_saturation": float(result.failures(500)),
    }


def overload(bodies: list[Body], seconds: float) -> dict[str, float]:
    """Far more clients than fit: the rest is told 503."""
    result = asyncio.run(closed_loop(bodies, OVERLOAD_CLIENTS, seconds))
    return {
        "overload_503": float(result.statuses[503]),
        "overload_other_errors": float(result.failures(400) - result.statuses[503]),
        "overload_accepted_per_second": result.rate,
        "p99_ms": 1e3 * quantile(result.latencies, 0.99),
    }


def beside_avatars(bodies: list[Body], seconds: float) -> dict[str, float]:
    """Ask for faces while another client has one head made after another."""

    async def both() -> tuple[Result, Result]:
        faces, heads = closed_loop(bodies, 1, seconds), closed_loop(bodies, 1, seconds, url=AVATARS_URL)
        return await asyncio.gather(faces, heads)

    faces, heads = asyncio.run(both())
    return {
        "p50_ms_beside_avatars": 1e3 * statistics.median(faces.latencies),
        "p99_ms_beside_avatars": 1e3 * quantile(faces.latencies, 0.99),
        "seconds_per_avatar": statistics.median(heads.latencies),
        "failed_beside_avatars": float(faces.failures(400) + heads.failures(400)),
    }


def memory(bodies: list[Body], requests: int) -> dict[str, float]:
    """The replica's memory after a tenth of the requests, and after all of them."""
    pid = replica_pids()[0]
    asyncio.run(counted(bodies, requests // 10))
    before = resident_mb(pid)
    asyncio.run(counted(bodies, requests - requests // 10))
    return {"rss_mb": resident_mb(pid), "rss_growth_mb": resident_mb(pid) - before}


def killed(bodies: list[Body], seconds: float) -> dict[str, float]:
    """Kill -9 one of two replicas in the middle of a load; clients try again with their keys."""
    result = asyncio.run(
        closed_loop(bodies, CLIENTS // 2, seconds, tries=TRIES, after=(seconds / 3, kill_a_replica))
    )
    return {
        "requests_around_kill": float(len(result.latencies)),
        "retries_around_kill": float(result.retries),
        "failed_after_kill": float(result.lost),
    }


def rolled(bodies: list[Body], seconds: float) -> dict[str, float]:
    """Deploy the application anew in the middle of a load."""

    def update() -> None:
        deploy(2, max_batch_size=BATCH // 2)

    result = asyncio.run(
        closed_loop(bodies, CLIENTS // 2, 1.5 * seconds, tries=TRIES, after=(seconds / 3, update))
    )
    return {
        "requests_around_update": float(len(result.latencies)),
        "retries_around_update": float(result.retries),
        "failed_after_update": float(result.lost),
    }


# Load


@dataclass
class Result:
    """What became of requests."""

    latencies: list[float] = field(default_factory=list)
    """Seconds, of those that succeeded, their tries together."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of all tries; 0: the connection broke."""
    retries: int = 0
    lost: int = 0
    """Requests that failed in all their tries."""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Successes a second."""
        return len(self.latencies) / self.seconds

    def failures(self, least: int) -> int:
        """Tries that ended with this status or a higher one, or with a broken connection."""
        return sum(count for status, count in self.statuses.items() if status >= least or status == 0)


def bare_rate(
    engine: Engine, inputs: list[dict[str, Photo]], batch: int, seconds: float, *, meshes: bool = False
) -> float:
    """Return faces a second of the Predictor alone."""
    people = itertools.cycle(inputs)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        views = [engine.prepare(next(people)) for _ in range(batch)]
        if meshes:
            engine.predictor.predict_batch(ViewBatch.concatenate([item.batch for item in views]))
        else:
            engine.predict(views)
        count += batch
    return count / (time.perf_counter() - start)


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores but one busy."""
    cores = len(os.sched_getaffinity(0))
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores - 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


async def closed_loop(
    bodies: list[Body],
    clients: int,
    seconds: float,
    tries: int = 1,
    after: tuple[float, Callable[[], None]] | None = None,
    url: str = URL,
) -> Result:
    """Let each client ask again as soon as it has its answer; call a function after some seconds."""
    result = Result()
    end = time.perf_counter() + seconds

    async with session(clients) as http:

        async def client(bodies_of_it: Iterator[Body]) -> None:
            while time.perf_counter() < end:
                await ask(http, next(bodies_of_it), result, tries, url)

        tasks = [client(itertools.cycle(bodies[k % PEOPLE :] + bodies[: k % PEOPLE])) for k in range(clients)]
        start = time.perf_counter()
        await asyncio.gather(*tasks, *([] if after is None else [later(*after)]))
        result.seconds = time.perf_counter() - start
    return result


async def open_loop(bodies: list[Body], rate: float, seconds: float) -> Result:
    """Send requests at a steady rate, whatever becomes of them."""
    result = Result()
    people = itertools.cycle(bodies)
    async with session(0) as http:
        start = time.perf_counter()
        tasks = []
        for k in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + k / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(http, next(people), result, 1)))
        await asyncio.gather(*tasks)
        result.seconds = time.perf_counter() - start
    return result


async def counted(bodies: list[Body], requests: int) -> None:
    """Send a number of requests."""
    people = itertools.cycle(bodies)
    result = Result()
    async with session(BATCH) as http:

        async def client(count: int) -> None:
            for _ in range(count):
                await ask(http, next(people), result, 1)

        await asyncio.gather(*(client(requests // BATCH) for _ in range(BATCH)))


async def ask(http: aiohttp.ClientSession, body: Body, result: Result, tries: int, url: str = URL) -> None:
    """Post one request, with an Idempotency-Key where it may be tried again."""
    headers = {"Content-Type": body.kind}
    if tries > 1:
        headers["Idempotency-Key"] = uuid.uuid4().hex
    start = time.perf_counter()
    for attempt in range(tries):
        try:
            async with http.post(url, data=body.content, headers=headers) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        result.statuses[status] += 1
        if status == 200:
            result.latencies.append(time.perf_counter() - start)
            return
        result.retries += attempt < tries - 1
        await asyncio.sleep(0.25 * 2**attempt if tries > 1 else 0.05)
    result.lost += 1


@asynccontextmanager
async def session(clients: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections that are kept open."""
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=6 * TIME_LIMIT_S)
    ) as http:
        yield http


async def later(seconds: float, work: Callable[[], None]) -> None:
    """Do blocking work in a thread after some seconds."""
    await asyncio.sleep(seconds)
    await asyncio.to_thread(work)


# The replicas


def replica_pids() -> list[int]:
    """Return the processes of the replicas that hold the model."""
    named = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if path.read_bytes().startswith(b"ray::ServeReplica:dfmvr:Reconstructions"):
                named.append(int(path.parent.name))
    return sorted(named)


def kill_a_replica() -> None:
    """Kill -9 a replica."""
    os.kill(replica_pids()[0], 9)


def resident_mb(pid: int) -> float:
    """Memory that a process holds (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def quantile(values: list[float], share: float) -> float:
    """Return a quantile; NaN-free: no values, no time."""
    return float(np.quantile(values, share)) if values else 0.0


if __name__ == "__main__":
    main()
