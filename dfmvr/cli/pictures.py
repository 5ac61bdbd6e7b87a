"""What commands that take photographs share: their options, and how the pictures are read and faces found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dfmvr.cli.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfmvr.predictor import Photo, Predictor

VIEWS = {
    "left": "the subject's left side (the nose points to the picture's left)",
    "front": "the face from the front",
    "right": "the subject's right side (the nose points to the picture's right)",
}
N_POINTS = 5
FINDERS = ("auto", "dlib", "face_alignment")

PICTURE_NOTES = """\
The face is found where dlib-bin is installed (pip install 'dfmvr[photos-dlib]'), or given by its points. The
five points are pixels x,y of the photograph, from its top-left corner, in this order (right and left are the
subject's): right eye, left eye, tip of the nose, right corner of the mouth, left corner of the mouth. A JSON
file holds these five pairs, or 68 in iBUG's order. A square picture of the size that the network was trained
with is taken as a crop.
"""


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name photographs, and who finds the faces in them."""
    parser.add_argument(
        "photographs", type=Path, nargs="*", metavar="IMAGE", help="the front view; or left, front and right"
    )
    for view, meaning in VIEWS.items():
        parser.add_argument(f"--{view}", type=Path, metavar="IMAGE", help=f"photograph of {meaning}")
        parser.add_argument(
            f"--{view}-points", type=parse_points, metavar="X1,Y1,...", help="its points, or a .json file"
        )
    parser.add_argument(
        "--landmarks",
        choices=FINDERS,
        default=FINDERS[0],
        help="who finds the face in photographs without points (auto: dlib)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a trained model, and what is done with its answer."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a trained model, such as runs/ID/model; default: the one shipped",
    )
    parser.add_argument(
        "--face-model",
        type=Path,
        metavar="FILE",
        help="the face model (.npz) that the model was trained with; default: the one shipped",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="fit the face to the photographs' 68 landmarks (those found, or a .json file's)",
    )


def parse_points(text: str) -> NDArray[np.float64]:
    """Parse `x1,y1,...,x5,y5` into [5, 2] pixels, or read a JSON file of [5, 2] or [68, 2]."""
    import numpy as np

    if text.endswith(".json"):
        from dfmvr.data.preprocess.landmark import parse_landmarks

        try:
            return parse_landmarks(Path(text).read_bytes(), text)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers x1,y1,...,x5,y5, got {text!r}") from error
    if len(numbers) != 2 * N_POINTS:
        raise argparse.ArgumentTypeError(
            f"expected {2 * N_POINTS} numbers x1,y1,...,x5,y5, got {len(numbers)} in {text!r}"
        )
    return np.array(numbers).reshape(N_POINTS, 2)


def read_photos(options: argparse.Namespace, predictor: Predictor | None = None) -> dict[str, Photo]:
    """Read the photographs that were named, by view.

    Args:
        options: of `add_picture_options`.
        predictor: that they are for; one that takes any views may get any number without names.

    Raises:
        UserError: none was named, one cannot be read, or points come without a photograph.
    """
    from dfmvr.predictor import Photo

    paths = {view: getattr(options, view) for view in VIEWS if getattr(options, view) is not None}
    if options.photographs and not paths and predictor is not None and predictor.takes_any_views:
        return {f"photograph {k}": Photo(read_image(p)) for k, p in enumerate(options.photographs, 1)}
    if options.photographs:
        names = {1: ["front"], len(VIEWS): list(VIEWS)}.get(len(options.photographs))
        if paths or names is None:
            raise UserError(
                "expected one photograph (front) or three (left, front, right) without names, got "
                f"{len(options.photographs)}{' and others with names' if paths else ''}; "
                f"name them: {', '.join('--' + view for view in VIEWS)}"
            )
        paths = dict(zip(names, options.photographs, strict=True))
    photos = {}
    for view in VIEWS:
        points = getattr(options, f"{view}_points")
        if view in paths:
            photos[view] = Photo(read_image(paths[view]), points)
        elif points is not None:
            raise UserError(f"--{view}-points came without --{view}")
    if not photos:
        raise UserError(f"expected at least one photograph: {', '.join('--' + view for view in VIEWS)}")
    return photos


def find_faces(photos: dict[str, Photo], predictor: Predictor, backend: str) -> dict[str, Photo]:
    """Find the face's 68 landmarks in photographs that come without points and are no crops.

    Args:
        photos: by view.
        predictor: that they are for.
        backend: one of FINDERS.

    Raises:
        UserError: the backend is not installed.
        FaceNotFound: a photograph shows no face, or several.
    """
    from dfmvr.data.preprocess.detect import BYSTANDER_SHARE, PackageMissing
    from dfmvr.data.preprocess.landmark import build_finder

    wanted = predictor.unlocated(photos)
    if not wanted:
        return photos
    try:
        finder = build_finder(backend, BYSTANDER_SHARE)
    except PackageMissing as error:
        size = predictor.image_size
        raise UserError(
            f"{wanted[0]} view: expected points (--{wanted[0]}-points), a crop of {size} x {size} px, "
            f"or what finds the face: {error}"
        ) from error
    return predictor.locate(photos, finder)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as RGB [H, W, 3], turned as its EXIF data say.

    Raises:
        UserError: it does not exist.
        PictureError: it is no whole picture, or too large.
    """
    from dfmvr.data.preprocess.read_picture import decode_picture

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return decode_picture(path.read_bytes(), str(path))
