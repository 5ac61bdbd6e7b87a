"""Draw the README's picture: people that no data set holds, reconstructed by the shipped weights.

python scripts/draw_example.py [--model DIR] [--out docs/images/example.jpg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.sample import Sample
from dfmvr.data.settings import DataSettings
from dfmvr.evaluation.evaluator import Coefficients, Evaluator
from dfmvr.evaluation.pictures import Picture, draw_turntable, enlarge, error_colours
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.files import write_atomic
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Predictor

SEED = 987_654
"""Of people that no data set holds."""
PEOPLE = (0, 1, 2)
TURNS = (-40, 0)
TILE = 200
TOP_MM = 4.0
"""Error at the end of the colour scale."""


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a trained model (default: the one shipped)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/example.jpg"))
    options = parser.parse_args()
    predictor = Predictor.load(options.model)
    evaluator = Evaluator(predictor.face_model, MorphableModel.load(level=1), EvaluationSettings())
    settings = SyntheticSettings(
        n_subjects=len(PEOPLE), split_shares=(0.0, 0.0, 1.0), image_size=predictor.image_size
    )
    rows = [draw_row(predictor, evaluator, render_sample(settings, SEED, k, 0)) for k in PEOPLE]
    picture = np.concatenate([titles(rows[0].shape[1]), *rows])
    write_atomic(options.out, cv2.imencode(options.out.suffix, picture[..., ::-1])[1].tobytes())
    print(options.out)


def draw_row(predictor: Predictor, evaluator: Evaluator, sample: Sample) -> Picture:
    """Draw three photographs, prediction, truth and error [TILE, 9 * TILE, 3], the last three in clay."""
    params = predictor.predict_params(collate([sample], DataSettings(image_size=predictor.image_size)))
    face = Coefficients(params.identity[0].numpy(), params.expression[0].numpy())
    truth = evaluator.truth(sample)
    measured = evaluator.measure(truth, face)
    predicted = measured.transform.apply(evaluator.vertices(face))
    scan, triangles = np.asarray(sample.scan_vertices), np.asarray(sample.scan_triangles)
    centre = (scan.min(0) + scan.max(0)) / 2
    colours = error_colours(measured.distances, truth.vertex_ids, len(scan), TOP_MM)
    meshes = (
        (predicted, evaluator.model.triangles.numpy(), None, 1.0),
        (scan, triangles, None, 1.0),
        (scan, triangles, colours, 0.45),
    )
    drawn = [
        on_white(draw_turntable(v, t, TURNS, centre=centre, colours=c, size=TILE, relief=r))
        for v, t, c, r in meshes
    ]
    row = np.concatenate([*(enlarge(image, TILE) for image in sample.images), *drawn], axis=1)
    text = f"{measured.values['rmse']:.2f} mm"
    cv2.putText(
        row,
        text,
        (row.shape[1] - TILE + 50, TILE - 8),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5,
        (60, 60, 60),
        1,
        cv2.LINE_AA,
    )
    return row


def titles(width: int) -> Picture:
    """Draw the columns' titles."""
    strip = np.full((28, width, 3), 255, np.uint8)
    columns = (
        (0, "three photographs, as the network sees them"),
        (3, "reconstruction"),
        (5, "truth"),
        (7, f"error, blue 0 to red {TOP_MM:g} mm"),
    )
    for tile, text in columns:
        place = (tile * TILE + 10, 19)
        cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    return strip


def on_white(picture: Picture) -> Picture:
    """Lay a picture with alpha on white."""
    alpha = picture[..., 3:].astype(float) / 255
    return np.round(picture[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


if __name__ == "__main__":
    main()
