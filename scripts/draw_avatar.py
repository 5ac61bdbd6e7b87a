"""Draw the picture of docs/avatar.md: a head from one photograph (NASA, public domain), turned and smiling.

python scripts/draw_avatar.py [--out docs/images/avatar.jpg] [--detail]   (needs dlib-bin and scikit-image)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

from dfmvr.avatar.build import build_avatar
from dfmvr.avatar.head import load_head
from dfmvr.avatar.turntable import SMILE, draw_avatar
from dfmvr.data.preprocess.landmark import build_finder
from dfmvr.files import write_atomic
from dfmvr.predictor import Photo, Predictor

TILE = 400
TURN = 0.6
"""In radians."""
BYSTANDERS = 0.5


def main() -> None:
    """Parse, reconstruct, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/avatar.jpg"))
    parser.add_argument("--detail", action=argparse.BooleanOptionalAction, default=False)
    options = parser.parse_args()
    predictor, head = Predictor.load(), load_head()
    photos = predictor.locate({"front": Photo(astronaut())}, build_finder("dlib", BYSTANDERS))
    views = predictor.prepare(photos)
    face = predictor.refine(views)
    avatar = build_avatar(head, photos, views, face, detail=options.detail)
    poses = [(-TURN, {}), (0.0, {}), (0.0, SMILE), (TURN, {})]
    picture = np.concatenate([draw_avatar(avatar, yaw, units, TILE) for yaw, units in poses], axis=1)
    write_atomic(options.out, cv2.imencode(options.out.suffix, picture[..., ::-1])[1].tobytes())
    print(options.out)


if __name__ == "__main__":
    main()
