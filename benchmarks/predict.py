"""How long does a reconstruction take? python -m benchmarks.predict [--model DIR] [--batches 1,4,16]

A triple of pictures cropped to the network's size, end to end as the command line and the server do it:
prepare, network, decoding of the mesh (level 2, about 41 k vertices).

- `ms_per_triple`: one triple by itself, median; `worst_ms_per_triple` the slowest; what its three parts take;
- `triples_per_second`: of the best batch; `_batch_N` by batch;
- `paper_ms_per_triple`: the paper's network at 224 px, random weights, one triple.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import add_timing, report, start_timing, time_in_turn
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import PRESETS
from dfmvr.networks.weights import ModelCard
from dfmvr.predictor import MESH_LEVEL, Photo, Predictor
from dfmvr.reconstructor import reconstructions
from dfmvr.types import VIEW_NAMES, Reconstruction, ViewBatch

PAPER_SIZE = 224
PAPER_ROUNDS = 3


def main() -> None:
    """Parse, time, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a trained model (default: the one shipped)")
    parser.add_argument("--batches", default="1,4,16", help="triples at once (%(default)s)")
    add_timing(parser, rounds=20)
    options = parser.parse_args()
    clock = start_timing(options)
    predictor = Predictor.load(options.model)
    sizes = [int(size) for size in options.batches.split(",")]
    one = photos(predictor.image_size)
    times = time_in_turn(
        {"end to end": lambda: predictor(one), **parts(predictor)}, options.rounds, clock=clock
    )
    batches = {str(size): lambda n=size: reconstruct(predictor, n) for size in sizes}
    by_batch = time_in_turn(batches, max(options.rounds // 4, 1), warm_up=1, clock=clock)
    rates = {size: 1e3 * int(size) / statistics.median(runs) for size, runs in by_batch.items()}
    paper = paper_predictor(predictor.face_model)
    large = photos(PAPER_SIZE)
    of_paper = time_in_turn({"paper": lambda: paper(large)}, PAPER_ROUNDS, warm_up=1, clock=clock)
    metrics = {
        "ms_per_triple": statistics.median(times["end to end"]),
        "worst_ms_per_triple": max(times["end to end"]),
        "triples_per_second": max(rates.values()),
        **{f"ms_{name}": statistics.median(times[name]) for name in ("prepare", "network", "decode")},
        **{f"triples_per_second_batch_{size}": rate for size, rate in rates.items()},
        "paper_ms_per_triple": statistics.median(of_paper["paper"]),
    }
    report(
        "predict",
        {name: round(value, 2) for name, value in metrics.items()},
        image_size=predictor.image_size,
        vertices=len(predictor.face_model.mean_shape),
        clock=clock.__name__,
    )


def photos(size: int) -> dict[str, Photo]:
    """Return a cropped triple; what it shows makes no difference to the time."""
    rng = np.random.default_rng(0)
    return {name: Photo(rng.integers(0, 256, (size, size, 3), np.uint8)) for name in VIEW_NAMES}


def parts(predictor: Predictor) -> dict[str, Callable[[], object]]:
    """Return what a reconstruction consists of."""
    one = photos(predictor.image_size)
    batch = predictor.prepare(one).batch
    params = predictor.predict_params(batch)

    @torch.inference_mode()
    def decode() -> list[Reconstruction]:
        return reconstructions(params, batch.intrinsics, predictor.face_model)

    return {
        "prepare": lambda: predictor.prepare(one),
        "network": lambda: predictor.predict_params(batch),
        "decode": decode,
    }


def reconstruct(predictor: Predictor, count: int) -> list[Reconstruction]:
    """Reconstruct a number of triples at once."""
    one = photos(predictor.image_size)
    prepared = [predictor.prepare(one).batch for _ in range(count)]
    return predictor.predict_batch(ViewBatch.concatenate(prepared))


def paper_predictor(face_model: MorphableModel) -> Predictor:
    """Return a predictor with the paper's network, untrained."""
    torch.manual_seed(0)
    network = PRESETS["paper"]
    card = ModelCard(network, PAPER_SIZE, VIEW_NAMES, face_model.hash, MESH_LEVEL, "untrained", 0, "", "")
    return Predictor(build_network(network).eval(), card, face_model)


if __name__ == "__main__":
    main()
