"""`dfmvr avatar`: photographs in, an animatable head out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfmvr.cli.errors import UserError
from dfmvr.cli.pictures import (
    PICTURE_NOTES,
    add_model_options,
    add_picture_options,
    find_faces,
    read_photos,
)

if TYPE_CHECKING:
    from dfmvr.predictor import Photo

DEFAULT_OUT = "head.glb"
EXAMPLE_SUBJECT = 14
"""Whom `--example` shows, a person of the synthetic data set."""
EXAMPLE_SIZE = 512
"""Side in pixels of its pictures."""

AVATAR_EXAMPLES = f"""\
The GLB holds the whole head with its neck, eyes, teeth and tongue, a texture, and 52 morph targets under
ARKit's names. OBJ (with NAME.mtl and NAME.png beside it) and PLY hold the head at rest.

{PICTURE_NOTES}
examples:
  dfmvr avatar me.jpg
  dfmvr avatar left.jpg front.jpg right.jpg -o head.glb --turntable head.webp
  dfmvr avatar --front me.png --front-points 203,101,247,104,224,125,203,140,246,141 -o me.glb me.obj
  dfmvr avatar --example --turntable head.mp4
"""


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "avatar",
        help="photographs in, an animatable head out",
        description="Make an animatable head (glTF) from one to three photographs.",
        epilog=AVATAR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_picture_options(parser)
    parser.add_argument(
        "--example", action="store_true", help="instead of photographs: three rendered pictures of one person"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        nargs="+",
        default=[Path(DEFAULT_OUT)],
        metavar="FILE",
        help=f"files to write, .glb, .obj or .ply ({DEFAULT_OUT})",
    )
    parser.add_argument(
        "--turntable",
        type=Path,
        metavar="FILE",
        help="draw the head turning and smiling, .webp, .gif or .mp4",
    )
    parser.add_argument(
        "--detail",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="find wrinkles and folds, too: a normal map in .glb, shape in .obj and .ply (--no-detail)",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Reconstruct a head and write it."""
    from dfmvr.avatar.build import build_avatar
    from dfmvr.avatar.files import facts_of, write_avatar
    from dfmvr.avatar.head import load_head
    from dfmvr.avatar.turntable import check_turntable_path, write_turntable
    from dfmvr.export import check_mesh_path
    from dfmvr.predictor import Predictor

    for path in options.out:
        check_mesh_path(path)
    if options.turntable:
        check_turntable_path(options.turntable)
    predictor = Predictor.load(options.model, options.face_model)
    photos = example_photos(options) if options.example else read_photos(options, predictor)
    head = load_head(options.face_model)
    photos = find_faces(photos, predictor, options.landmarks)
    views = predictor.prepare(photos)
    face = predictor.refine(views) if options.refine else predictor.reconstruct(views)
    for warning in face.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    avatar = build_avatar(head, photos, views, face, detail=options.detail)
    facts = facts_of(head, predictor.weights_hash)
    for path in options.out:
        for written in write_avatar(avatar, path, facts):
            print(written)
    if options.turntable:
        write_turntable(avatar, options.turntable)
        print(options.turntable)


def example_photos(options: argparse.Namespace) -> dict[str, Photo]:
    """Render three pictures of a person who does not exist.

    Raises:
        UserError: photographs are named as well.
    """
    from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
    from dfmvr.predictor import Photo

    if options.photographs or options.left or options.front or options.right:
        raise UserError("expected either --example or photographs, got both")
    settings = SyntheticSettings(
        image_size=EXAMPLE_SIZE, degradation=0.0, glasses_share=0.0, occluder_share=0.0, cloth_mask_share=0.0
    )
    sample = render_sample(settings, 0, EXAMPLE_SUBJECT, 0)
    return {
        name: Photo(image, points)
        for name, image, points in zip(sample.view_names, sample.images, sample.landmarks_2d, strict=True)
    }
