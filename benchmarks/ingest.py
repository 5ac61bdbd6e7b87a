"""From storage to a training batch: samples a second from a local disk and from S3, and what decoding costs.

    python -m benchmarks.ingest [--size 224] [--samples 512] [--seconds 10]

A few synthetic people are drawn, and repeated until there are enough rows. `decode` is one core that decodes
and collates rows that are in memory already, without Ray: the limit of any reader. `local_N` and `s3_N` are N
training workers (Ray actors) that read with Ray Data and vary what they have read, as in training; the S3
server is moto's, in a process of its own on the same machine. `step` is a training step of configs/small.yaml
on the same number of threads, for comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import pyarrow.fs
import ray
import torch

from benchmarks.common import ratio, report, time_in_turn
from dfmvr.config import load_settings
from dfmvr.data import storage
from dfmvr.data.augment import augment, step_generator
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.rejects import Rejects, decode_rows
from dfmvr.data.sample import encode_sample, rows_to_parquet
from dfmvr.data.settings import DataSettings
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.dry_run import made_up_batch
from dfmvr.training.optim import build_optimiser
from dfmvr.training.step import train_step
from ray_jobs.reading import iterate_batches, training_dataset
from ray_jobs.scaling import init_ray

PEOPLE = 8
SEED = 11
ROWS_A_FILE = 64
BATCH = 16
WANTED_BY_A_GPU = 400.0
"""Samples a second."""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="pixels a side (%(default)d)")
    parser.add_argument("--samples", type=int, default=512, help="rows of the data set (%(default)d)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each way of reading (%(default)g)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SyntheticSettings(
        n_subjects=PEOPLE, image_size=options.size, supersample=1, split_shares=(1.0, 0.0, 0.0)
    )
    samples = [render_sample(settings, SEED, person, 1) for person in range(PEOPLE)]
    rows = [encode_sample(sample) for sample in samples]
    metrics = of_one_core(rows, options.size) | by_format(samples)
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        init_ray("local", num_cpus=4, object_store_memory=500 * 2**20)
        for place, uri in (("local", folder), ("s3", bucket)):
            write(uri, rows, options.samples)
            for workers in (1, 2):
                name = f"{place}_{workers}_samples_per_second"
                metrics[name] = read(uri, options.size, workers, options.seconds)
        ray.shutdown()
    metrics["local_1_over_decode"] = (
        metrics["local_1_samples_per_second"] / metrics["decode_samples_per_second"]
    )
    metrics["cores_for_a_gpu"] = WANTED_BY_A_GPU / metrics["decode_samples_per_second"]
    report("ingest", metrics, size=options.size, rows=options.samples, gpu_eats=WANTED_BY_A_GPU)


def of_one_core(rows: list[dict[str, Any]], size: int) -> dict[str, float]:
    """Time decoding, augmentation and a training step on one thread, side by side."""
    data = DataSettings(image_size=size, batch_size=PEOPLE)
    rejects = Rejects(0.0, len(rows))
    numbered = [{"row": k, "path": "memory", **row} for k, row in enumerate(rows)]

    def decode() -> Any:
        return collate(decode_rows(numbered, data, rejects), data)

    small = load_settings("configs/small.yaml")
    model = build_reconstructor(small.network, small.face_model).train()
    adam = build_optimiser(model.network, small.optimiser)
    made_up = made_up_batch(PEOPLE, small.network.n_views, small.data.image_size)
    at_small = collate(decode_rows(numbered, data, rejects), data)
    sides: dict[str, Callable[[], object]] = {
        "decode": decode,
        "augment": lambda: augment(at_small, data, step_generator(SEED)),
        "step": lambda: train_step(model, [made_up], adam, small.losses, 1.0),
    }
    times = time_in_turn(sides, rounds=5, warm_up=1)
    scale = (small.data.image_size / size) ** 2
    return {
        "decode_samples_per_second": PEOPLE / statistics.median(times["decode"]) * 1e3,
        "decode_ms": statistics.median(times["decode"]) / PEOPLE,
        "augment_ms": statistics.median(times["augment"]) / PEOPLE,
        "sample_kb": sum(len(value) for row in rows for value in picture_bytes(row)) / len(rows) / 1e3,
        "step_ms_of_small": statistics.median(times["step"]) / PEOPLE,
        "decoding_over_small_step_at_its_size": 1 / ratio(times["decode"], times["step"]) / scale,
        "augment_share_of_small_step": scale / ratio(times["step"], times["augment"]),
    }


def picture_bytes(row: dict[str, Any]) -> Iterator[bytes]:
    """Return a row's encoded pictures."""
    for value in row.values():
        yield from (
            item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bytes)
        )


def by_format(samples: list[Any]) -> dict[str, float]:
    """Time decoding the pictures of a sample in several formats: what would make it cheaper."""
    kinds = {
        "jpeg95": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
        "jpeg85": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85]),
        "png": (".png", []),
        "webp90": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 90]),
    }
    encoded = {
        name: [cv2.imencode(kind, view, how)[1] for sample in samples for view in sample.images]
        for name, (kind, how) in kinds.items()
    }
    encoded["mask_png"] = [cv2.imencode(".png", mask)[1] for sample in samples for mask in sample.masks]

    def decode_all(pictures: list[Any]) -> Callable[[], object]:
        return lambda: [cv2.imdecode(picture, cv2.IMREAD_UNCHANGED) for picture in pictures]

    times = time_in_turn({name: decode_all(pictures) for name, pictures in encoded.items()})
    found = {f"{name}_ms": statistics.median(values) / len(samples) for name, values in times.items()}
    kilobytes = {
        f"{name}_kb": sum(map(len, pictures)) / len(samples) / 1e3 for name, pictures in encoded.items()
    }
    return found | kilobytes


def write(uri: str, rows: list[dict[str, Any]], count: int) -> None:
    """Write a training split of `count` rows."""
    for first in range(0, count, ROWS_A_FILE):
        part = [{"row": k, **rows[(first + k) % len(rows)]} for k in range(min(ROWS_A_FILE, count - first))]
        storage.write_bytes(
            storage.join(uri, "train", f"part-{first // ROWS_A_FILE:05d}.parquet"), rows_to_parquet(part)
        )


def read(uri: str, size: int, workers: int, seconds: float) -> float:
    """Return samples a second that so many workers get together, after a first pass."""
    data = DataSettings(uri=uri, image_size=size, batch_size=BATCH)
    shards = training_dataset(data, "train", seed=SEED).streaming_split(workers, equal=True)
    readers = [Reader.remote(data, rank) for rank in range(workers)]  # type: ignore[attr-defined]

    def one_pass(epoch: int) -> int:
        pairs = zip(readers, shards, strict=True)
        return sum(ray.get([reader.go.remote(shard, epoch) for reader, shard in pairs]))

    one_pass(0)
    start, samples, epoch = time.perf_counter(), 0, 0
    while time.perf_counter() - start < seconds:
        epoch += 1
        samples += one_pass(epoch)
    rate = samples / (time.perf_counter() - start)
    for reader in readers:
        ray.kill(reader)
    return rate


@ray.remote(num_cpus=1)
class Reader:
    """A training worker that only reads."""

    def __init__(self, data: DataSettings, rank: int) -> None:
        torch.set_num_threads(1)
        self.data, self.rank = data, rank

    def go(self, shard: ray.data.DataIterator, epoch: int) -> int:
        """Read a pass over the shard; return its samples."""
        rejects = Rejects(0.0, 1)
        batches = iterate_batches(
            shard, self.data, epoch=epoch, seed=SEED, rejects=rejects, rank=self.rank, augment=True
        )
        return sum(len(batch.images) for batch in batches)


@contextmanager
def s3_server() -> Iterator[str]:
    """Start an S3 server in a process of its own; give the URI of a bucket."""
    code = (
        "from moto.server import ThreadedMotoServer as S\nimport time\n"
        "s = S(ip_address='127.0.0.1', port=0, verbose=False)\ns.start()\n"
        "print(s.get_host_and_port()[1], flush=True)\ntime.sleep(1e6)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test"),
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        pyarrow.fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir("ingest")
        yield "s3://ingest"
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
