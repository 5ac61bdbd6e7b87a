"""What several rooms' tests share: a Ray cluster, an object store, samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfmvr.data.manifest import SPLITS, Manifest, shard_uri, write_manifest
from dfmvr.data.sample import Sample, samples_to_parquet
from dfmvr.data.storage import write_bytes
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import VIEW_NAMES

MakeSample = Callable[..., Sample]
IMAGE_SIZE = 32
ROWS = {"train": 48, "validation": 8, "test": 6}
ROWS_PER_FILE = 8


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where several processes share the tests, a file's tests and those of the one cluster."""
    for item in items:
        shared = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("cluster" if shared else str(item.path)))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on this machine, spoken to over HTTP, set as AWS's endpoint; yields a bucket's URI."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir("dfmvr-test")
        yield "s3://dfmvr-test"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str) -> Iterator[None]:
    """One cluster of three logical CPUs for the whole session; its workers reach `s3_server`."""
    import ray

    from ray_jobs.scaling import init_ray

    init_ray("local", num_cpus=3, object_store_memory=250 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def make_sample() -> MakeSample:
    """Return `make_sample(index, truth=False, image_size=32, **changes)`: a small valid sample."""

    def make(index: int, *, truth: bool = False, image_size: int = IMAGE_SIZE, **changes: object) -> Sample:
        rng = np.random.default_rng(index)
        n_views = len(VIEW_NAMES)
        images = [
            cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (image_size, image_size))
            for _ in VIEW_NAMES
        ]
        masks = np.zeros((n_views, image_size, image_size), np.uint8)
        masks[:, 4:-4, 6:-6] = 1
        masks[:, 12:16, 10:14] = rng.integers(2, 10)
        focal = 1015 * image_size / 224
        camera = np.array([[focal, 0, image_size / 2], [0, focal, image_size / 2], [0, 0, 1]], np.float32)
        fields: dict[str, object] = {
            "sample_id": f"s{index:03d}-e00",
            "subject_id": f"s{index:03d}",
            "expression_id": "e00",
            "view_names": VIEW_NAMES,
            "view_yaws": np.array([-0.5, 0, 0.5], np.float32),
            "images": np.stack(images),
            "masks": masks,
            "landmarks_2d": rng.uniform(0, image_size, (n_views, 68, 2)).astype(np.float32),
            "landmarks_2d_weights": rng.uniform(0, 1, (n_views, 68)).astype(np.float32),
            "intrinsics": np.stack([camera] * n_views),
            "landmarks_3d": rng.normal(0, 50, (101, 3)).astype(np.float32),
        }
        if truth:
            fields["scan_vertices"] = rng.normal(0, 50, (40, 3)).astype(np.float32)
            fields["scan_triangles"] = np.arange(39, dtype=np.int32).reshape(13, 3)
            fields["scan_landmarks_7"] = rng.normal(0, 50, (7, 3)).astype(np.float32)
            mean_face = MorphableModel.load(level=1).mean_shape.numpy()
            fields["dense_vertices"] = (mean_face + rng.normal(0, 1, mean_face.shape)).astype(np.float32)
        return Sample(**(fields | changes))  # type: ignore[arg-type]  # the keys are Sample's fields

    return make


@pytest.fixture(scope="session")
def small_dataset(make_sample: MakeSample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 48 / 8 / 6 samples at 32 px, 8 a file; validation and test rows carry the truth."""
    folder = tmp_path_factory.mktemp("small_dataset")
    write_small_dataset(str(folder), make_sample)
    return folder


def write_small_dataset(uri: str, make_sample: MakeSample) -> None:
    start = 0
    for split in SPLITS:
        samples = [make_sample(start + k, truth=split != "train") for k in range(ROWS[split])]
        start += ROWS[split]
        for first in range(0, len(samples), ROWS_PER_FILE):
            data = samples_to_parquet(samples[first : first + ROWS_PER_FILE])
            write_bytes(shard_uri(uri, split, first // ROWS_PER_FILE), data)
    shards = {split: -(-rows // ROWS_PER_FILE) for split, rows in ROWS.items()}
    write_manifest(uri, Manifest({}, "0" * 16, IMAGE_SIZE, list(VIEW_NAMES), ROWS, ROWS, shards))
