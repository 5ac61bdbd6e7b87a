"""Draw the page's examples: crops of synthetic people that no data set holds.

python scripts/draw_page_examples.py [--out serve/examples]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.files import write_atomic
from dfmvr.networks.weights import load_model
from dfmvr.predictor import SHIPPED_MODEL
from dfmvr.types import VIEW_NAMES

SEED = 424_242
"""Of people that no data set holds."""
SHOTS = ((1, 0), (6, 0), (2, 1))
"""Person and expression: three of the first sixteen that look unlike each other."""
N_PEOPLE = 8
DEGRADATION = 0.3
"""Of the pictures: a friendly share of what training sees, as a visitor's own photographs are."""


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("serve/examples"))
    options = parser.parse_args()
    size = load_model(SHIPPED_MODEL)[1].image_size
    settings = SyntheticSettings(
        n_subjects=N_PEOPLE,
        split_shares=(0.0, 0.0, 1.0),
        image_size=size,
        occluder_share=0.0,
        cloth_mask_share=0.0,
        degradation=DEGRADATION,
    )
    for k, (person, expression) in enumerate(SHOTS, 1):
        images = render_sample(settings, SEED, person, expression).images
        for view, image in zip(VIEW_NAMES, images, strict=True):
            path = options.out / f"person{k}_{view}.png"
            write_atomic(path, cv2.imencode(".png", image[..., ::-1])[1].tobytes())
            print(path)


if __name__ == "__main__":
    main()
