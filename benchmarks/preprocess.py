"""How many photographs a second become samples on one core, stage by stage, and does memory grow?

    python -m benchmarks.preprocess [--pictures 10000] [--people 8] [--landmarks dlib]

Synthetic people are rendered at 224 px and written as JPEG in triples, each time shifted, brightened and
compressed anew. One process takes them through the stages as a worker of ray_jobs.preprocess does. Memory is
compared with that after the first tenth, when everything is loaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common import report
from dfmvr.data.datasets.records import Picture, Record
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.preprocess.pipeline import NOMINAL_YAWS, Outcome, Preprocessor
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.sample import encode_sample
from dfmvr.types import VIEW_NAMES

SEED = 123_456
SIZE = 224
MARGIN = 12
"""Pixels that are cut off at random, so that no two pictures are the same."""
RECORDS_AT_ONCE = 4


def main() -> None:
    """Write, prepare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=10_000, help="JPEG files, three a record")
    parser.add_argument("--people", type=int, default=8, help="distinct people among them")
    parser.add_argument("--landmarks", choices=("dlib", "face_alignment"), default="dlib")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preprocessor = Preprocessor(PreprocessSettings(landmarks=options.landmarks))
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    before = 0
    with tempfile.TemporaryDirectory() as folder:
        records = write_records(Path(folder), options.pictures // len(VIEW_NAMES), options.people)
        for first in range(0, len(records), RECORDS_AT_ONCE):
            for outcome in prepare(preprocessor, records[first : first + RECORDS_AT_ONCE], seconds):
                reasons.update(reject.reason for reject in outcome.rejects)
            if not before and first >= len(records) // 10:
                before = resident_bytes()
        growth = resident_bytes() - before
    count = len(records) * len(VIEW_NAMES)
    metrics = {"pictures_per_second": count / sum(seconds.values()), "rss_growth_mb": growth / 2**20}
    metrics |= {f"{stage}_pictures_per_second": count / time for stage, time in seconds.items()}
    metrics["share_without_sample"] = sum(reasons.values()) / count
    rounded = {name: round(value, 3) for name, value in metrics.items()}
    report("preprocess", rounded, pictures=count, size=SIZE, cores_used=1, reasons=dict(reasons))


def write_records(folder: Path, count: int, people: int) -> list[Record]:
    """Write triples of pictures; return their records."""
    settings = SyntheticSettings(n_subjects=people, image_size=SIZE, split_shares=(1.0, 0.0, 0.0))
    samples = [render_sample(settings, SEED, person, 0) for person in range(people)]
    rng = np.random.default_rng(SEED)
    records = []
    for index in range(count):
        pictures = {}
        for name, image in zip(VIEW_NAMES, samples[index % people].images, strict=True):
            top, left = rng.integers(0, MARGIN, 2)
            changed = np.clip(image[top:, left:] * rng.uniform(0.85, 1.1), 0, 255).astype(np.uint8)
            path = folder / f"{index:05d}_{name}.jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 96))]
            cv2.imwrite(str(path), changed[..., ::-1], quality)
            pictures[name] = Picture(str(path))
        records.append(Record(f"s{index:05d}", "e00", pictures))
    return records


def prepare(preprocessor: Preprocessor, records: list[Record], seconds: Counter[str]) -> list[Outcome]:
    """Take some records through the stages, and add the time of each."""

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start

    with stage("read"):
        loaded = [preprocessor.read(record.pictures[name]) for record in records for name in VIEW_NAMES]
    with stage("landmarks"):
        landmarks = preprocessor.find(loaded)
    with stage("crop"):
        yaws = [NOMINAL_YAWS[name] for _ in records for name in VIEW_NAMES]
        views = [preprocessor.crop(*item) for item in zip(loaded, landmarks, yaws, strict=True)]
    with stage("parse"):
        masks = preprocessor.parse(views)
    outcomes = []
    with stage("encode"):
        for index, record in enumerate(records):
            own = slice(index * len(VIEW_NAMES), (index + 1) * len(VIEW_NAMES))
            named = dict(zip(VIEW_NAMES, views[own], strict=True))
            outcome = preprocessor.assemble(record, named, dict(zip(VIEW_NAMES, masks[own], strict=True)))
            if outcome.sample is not None:
                encode_sample(outcome.sample)
            outcomes.append(outcome)
    return outcomes


def resident_bytes() -> int:
    """Memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
