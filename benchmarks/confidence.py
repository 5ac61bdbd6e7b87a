"""Are the expected errors right? python -m benchmarks.confidence [--model DIR] [--people 40] [--write]

New synthetic people are reconstructed from pictures with 68 noisy landmarks, by the network alone and
refined; what a reconstruction expects of its own error is compared with what the error is. `--write` first
measures the calibration on other new people (validation) and stores it beside the model's weights.
`--picture FILE` draws three test people. Errors are root mean squares in mm of the dense correspondence after
a similarity.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import report
from benchmarks.inputs import SEED, shape
from benchmarks.refine import photos
from dfmvr.confidence import WHOLE_FACE, Calibration, Case, ErrorModel, case_name, fit_scale_and_floor
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.sample import Sample
from dfmvr.evaluation.pictures import Picture, draw_turntable, enlarge, error_colours
from dfmvr.geometry.align import umeyama
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import SHIPPED_MODEL, Predictor
from dfmvr.refine import refine_params
from dfmvr.threads import use_threads
from dfmvr.types import VIEW_NAMES, FaceParams

VALIDATION_SEED = 24_681
"""Of people that neither a training set nor a test holds."""
INPUTS = {
    case_name(3, with_masks=True): (VIEW_NAMES, True),
    case_name(3, with_masks=False): (VIEW_NAMES, False),
    case_name(2, with_masks=False): (("left", "front"), False),
    case_name(1, with_masks=False): (("front",), False),
}
"""By case, the views that are given, and whether masks are."""
GAUSSIAN_95 = 1.614
"""95 % of the lengths of a 3D normal error lie below this times their root mean square; 61 % below 1."""
QUINTILES = 5
TOP_MM = 4.0
"""The error at the end of the picture's colour scale."""
PICTURE_SIZE, PICTURE_YAWS, TITLE_HEIGHT = 210, (0.0, 50.0), 30


@dataclass(frozen=True)
class Outcome:
    """One person's errors in one case, mm by region [R]."""

    network: Tensor
    refined: Tensor
    raw: Tensor
    """Of the refined answer, as the curvature alone has it."""
    lengths: list[Tensor]
    """By region, the refined answer's errors at its vertices."""


def main() -> None:
    """Parse, calibrate if asked to, check, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a trained model (default: the one shipped)")
    parser.add_argument("--people", type=int, default=40, help="number of test people")
    parser.add_argument("--validation-people", type=int, default=60, help="number of people to fit on")
    parser.add_argument("--write", action="store_true", help="fit the calibration and store it")
    parser.add_argument("--picture", type=Path, help="draw expected and true errors into this file")
    options = parser.parse_args()
    use_threads(torch.get_num_threads())
    predictor, model = Predictor.load(options.model), MorphableModel.load(level=1)
    errors = ErrorModel(model)
    if options.write:
        outcomes = measure(predictor, errors, model, VALIDATION_SEED, options.validation_people)
        calibration = calibrate(outcomes, list(errors.places), predictor.weights_hash)
        print(calibration.save(options.model or SHIPPED_MODEL))
    else:
        calibration = Calibration.load(options.model or SHIPPED_MODEL, predictor.weights_hash)
    if calibration is None:
        parser.error("this model has no calibration of its weights; --write makes it")
    outcomes = measure(predictor, errors, model, SEED, options.people)
    metrics: dict[str, float] = {}
    for name, case in calibration.cases.items():
        print(name)
        metrics |= {f"{name}_{key}": value for key, value in check(outcomes[name], case, errors).items()}
    if options.picture:
        draw(options.picture, predictor, errors, model, calibration)
    report("confidence", metrics, people=options.people)


def people(predictor: Predictor, seed: int, count: int) -> Iterable[Sample]:
    """Render new people with their truth."""
    settings = SyntheticSettings(
        n_subjects=count, split_shares=(0.0, 0.0, 1.0), image_size=predictor.image_size
    )
    for person in range(count):
        yield render_sample(settings, seed, person, person % settings.expressions_per_subject)


def measure(
    predictor: Predictor, errors: ErrorModel, model: MorphableModel, seed: int, count: int
) -> dict[str, list[Outcome]]:
    """Reconstruct people in every case; who cannot be refined is left out."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in INPUTS}
    for sample in people(predictor, seed, count):
        for name in INPUTS:
            before, after, covariance = reconstruct(predictor, model, sample, name)
            if covariance is not None:
                gaps = gaps_of(shape(model, after), sample)
                outcomes[name].append(
                    Outcome(
                        errors.measured(gaps_of(shape(model, before), sample)),
                        errors.measured(gaps),
                        errors.regions(covariance).double(),
                        [gaps[ids].norm(dim=-1) for ids in errors.places.values()],
                    )
                )
    return outcomes


def reconstruct(
    predictor: Predictor, model: MorphableModel, sample: Sample, case: str
) -> tuple[FaceParams, FaceParams, Tensor | None]:
    """Return the network's and the refined parameters, and the latter's covariance."""
    views = predictor.prepare(photos(sample, *INPUTS[case]))
    before = predictor.predict_params(views.batch)
    with torch.no_grad():
        refined = refine_params(before, views.batch, model)
    return before, refined.params, refined.covariance


def gaps_of(vertices: Tensor, sample: Sample) -> Tensor:
    """Return the errors [N, 3] mm of vertices [N, 3] after the best similarity."""
    truth = torch.from_numpy(sample.dense_vertices).double()
    return umeyama(vertices.double(), truth).apply(vertices.double()) - truth


def calibrate(outcomes: Mapping[str, list[Outcome]], regions: list[str], weights_hash: str) -> Calibration:
    """Fit each case to its people."""
    cases = {}
    for name, found in outcomes.items():
        network = torch.stack([o.network for o in found]).square().mean(0).sqrt().tolist()
        scale, floor = fit_scale_and_floor(
            torch.stack([o.raw for o in found]), torch.stack([o.refined for o in found])
        )
        by_region = {region: round(value, 3) for region, value in zip(regions, network, strict=True)}
        cases[name] = Case(by_region, round(scale, 4), round(floor, 4))
    return Calibration(weights_hash, cases)


def check(outcomes: list[Outcome], case: Case, errors: ErrorModel) -> dict[str, float]:
    """Print how expected and true errors of one case compare; return the figures."""
    regions = list(errors.places)
    expected = torch.stack([case.calibrated(o.raw) for o in outcomes]).numpy()
    true = torch.stack([o.refined for o in outcomes]).numpy()
    own = torch.stack([o.network for o in outcomes]).numpy()
    figures: dict[str, float] = {}
    print("| region | network: expected | true | refined: expected | true | rank correlation |")
    within = []
    for r, region in enumerate(regions):
        within.append(float(spearmanr(expected[:, r], true[:, r]).statistic))
        own_expected, own_true = case.network_mm[region], _rms(own[:, r])
        mean_expected, mean_true = _rms(expected[:, r]), _rms(true[:, r])
        print(
            f"| {region} | {own_expected:.2f} | {own_true:.2f} | {mean_expected:.2f} | {mean_true:.2f} "
            f"| {within[-1]:.2f} |"
        )
        figures[f"network_ratio_{region}"] = own_expected / own_true
        figures[f"refined_ratio_{region}"] = mean_expected / mean_true
    # The whole face is the sum of its regions: pooled figures are of the regions alone.
    parts = [r for r, region in enumerate(regions) if region != WHOLE_FACE]
    order = np.argsort(expected[:, parts], axis=None)
    for number, ids in enumerate(np.array_split(order, QUINTILES), 1):
        mean_expected, mean_true = (_rms(values[:, parts].flat[ids]) for values in (expected, true))
        print(f"quintile {number}: expected {mean_expected:.2f} true {mean_true:.2f}")
        figures[f"quintile_{number}_ratio"] = mean_expected / mean_true
    figures["rank_correlation"] = float(
        spearmanr(expected[:, parts].ravel(), true[:, parts].ravel()).statistic
    )
    figures["rank_correlation_within_regions"] = float(np.mean([within[r] for r in parts]))
    for share, factor in ((61, 1.0), (95, GAUSSIAN_95)):
        below = [
            float((o.lengths[r] < factor * e[r]).double().mean())
            for o, e in zip(outcomes, expected, strict=True)
            for r in parts
        ]
        figures[f"coverage_{share}"] = float(np.mean(below))
    return figures


def draw(
    path: Path, predictor: Predictor, errors: ErrorModel, model: MorphableModel, calibration: Calibration
) -> None:
    """Draw three test people: photograph, expected and true error of the refined front view alone."""
    from PIL import Image

    case = case_name(1, with_masks=False)
    rows = []
    for sample in people(predictor, SEED, 3):
        _, after, covariance = reconstruct(predictor, model, sample, case)
        if covariance is None:
            raise ValueError(f"{sample.sample_id}: no landmarks fit, so there is nothing to draw")
        vertices = shape(model, after)
        expected = calibration.cases[case].calibrated(errors.vertices(covariance))
        true = gaps_of(vertices, sample).norm(dim=-1)
        rows.append(_row(sample, vertices, model, expected, true))
    Image.fromarray(np.concatenate([_titles(), *rows])).save(path, quality=90)


def _row(sample: Sample, vertices: Tensor, model: MorphableModel, expected: Tensor, true: Tensor) -> Picture:
    """Return the front photograph, and the face coloured by two errors [N] mm, each from two sides."""
    triangles, everywhere = model.triangles.numpy(), np.arange(len(vertices))
    maps = [
        draw_turntable(
            vertices.numpy(),
            triangles,
            PICTURE_YAWS,
            centre=vertices.mean(0).numpy(),
            colours=error_colours(values.double().numpy(), everywhere, len(everywhere), TOP_MM),
            size=PICTURE_SIZE,
            relief=0.25,
        )
        for values in (expected, true)
    ]
    photo = enlarge(sample.images[sample.view_names.index("front")], PICTURE_SIZE)
    return np.concatenate([photo, *(on_white(drawn) for drawn in maps)], axis=1)


def _titles() -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    columns = {
        0: "photograph given",
        1: f"expected error, blue 0 to red {TOP_MM:g} mm",
        1 + len(PICTURE_YAWS): f"true error, blue 0 to red {TOP_MM:g} mm",
    }
    image = Image.new("RGB", (PICTURE_SIZE * (1 + 2 * len(PICTURE_YAWS)), TITLE_HEIGHT), "white")
    for column, text in columns.items():
        place = (column * PICTURE_SIZE + 8, 6)
        ImageDraw.Draw(image).text(place, text, "black", font=ImageFont.load_default(16))
    return np.asarray(image)


def on_white(picture: Picture) -> Picture:
    """Lay a picture with alpha on white."""
    alpha = picture[..., 3:].astype(float) / 255
    return np.asarray(np.round(picture[..., :3] * alpha + 255 * (1 - alpha)), np.uint8)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


if __name__ == "__main__":
    main()
