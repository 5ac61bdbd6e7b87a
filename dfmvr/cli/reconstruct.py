"""`dfmvr reconstruct`: photographs in, a 3D face out."""

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
    from dfmvr.predictor import Photo, Predictor, PreparedViews
    from dfmvr.types import Reconstruction

DEFAULT_OUT = ("face.glb", "face.obj")
DEFAULT_OVERLAY = "face_overlay.png"
OVERLAY_TILE = 336
"""Side in pixels of one picture in an overlay."""

RECONSTRUCT_EXAMPLES = f"""\
{PICTURE_NOTES}
examples:
  dfmvr reconstruct me.jpg
  dfmvr reconstruct left.jpg front.jpg right.jpg --out face.glb --overlay overlay.png
  dfmvr reconstruct --front me.png --front-points 203,101,247,104,224,125,203,140,246,141 --out me.glb
  dfmvr reconstruct --left l.jpg --left-points 90,120,150,118,95,160,100,190,140,188 \\
                    --front f.jpg --front-points 80,118,150,118,115,160,90,195,140,195 \\
                    --right r.jpg --right-points 75,118,140,120,130,160,88,190,130,190 \\
                    --out face.glb face.ply --overlay overlay.png
  dfmvr reconstruct *.jpg --model runs/anyview/model
  dfmvr reconstruct --front crop.png --model df_mvr --face-model bfm.npz --out face.obj
"""


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reconstruct",
        help="photographs in, a 3D face out",
        description="Reconstruct a face from one to three photographs; a model for any number takes more.",
        epilog=RECONSTRUCT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_picture_options(parser)
    parser.add_argument(
        "--out", type=Path, nargs="+", metavar="FILE", help=f"meshes to write ({' '.join(DEFAULT_OUT)})"
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="PNG",
        help=f"draw the face over the photographs, to judge the fit (without --out: {DEFAULT_OVERLAY})",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Reconstruct a face and write it."""
    from dfmvr.export import check_mesh_path, export_mesh
    from dfmvr.predictor import Predictor

    meshes = options.out or [Path(name) for name in DEFAULT_OUT]
    overlay = options.overlay or (None if options.out else Path(DEFAULT_OVERLAY))
    for path in meshes:
        check_mesh_path(path)
    predictor = Predictor.load(options.model, options.face_model)
    photos = read_photos(options, predictor)
    photos = find_faces(photos, predictor, options.landmarks)
    views = predictor.prepare(photos)
    face = predictor.refine(views) if options.refine else predictor.reconstruct(views)
    for warning in face.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for region, error in (face.expected_error_mm or {}).items():
        print(f"expected error: {region.replace('_', ' ')} {error:.1f} mm", file=sys.stderr)
    facts = {"face_model": predictor.face_model.hash, "weights": predictor.weights_hash}
    for path in meshes:
        print(export_mesh(face.mesh, path, name=path.stem, extras=facts))
    if overlay:
        write_overlay(overlay, photos, views, face, predictor)
        print(overlay)


def write_overlay(
    path: Path, photos: dict[str, Photo], views: PreparedViews, face: Reconstruction, predictor: Predictor
) -> None:
    """Draw the face over the photographs that were given and write the picture."""
    import dataclasses

    import cv2
    import numpy as np

    from dfmvr.files import write_atomic
    from dfmvr.overlay import draw_overlay

    tile = OVERLAY_TILE
    larger = [
        dataclasses.replace(crop, size=tile, to_crop=crop.to_crop * tile / crop.size) for crop in views.crops
    ]
    images = np.stack(
        [crop.cut(photos[source].image) for crop, source in zip(larger, views.sources, strict=True)]
    )
    rows = draw_overlay(images, predictor.image_size, face, predictor.renderer)
    given = [rows[v] for v, name in enumerate(views.names) if name in photos]
    encoded, data = cv2.imencode(path.suffix or ".png", np.concatenate(given)[..., ::-1])
    if not encoded:
        raise UserError(f"{path}: cannot write a picture of this kind")
    write_atomic(path, data.tobytes())
