"""The command line `dfmvr`: one function a command, errors of the user's as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfmvr import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfmvr.predictor import Photo, Predictor, PreparedViews
    from dfmvr.types import Reconstruction

VIEWS = {
    "left": "the subject's left side (the nose points to the picture's left)",
    "front": "the face from the front",
    "right": "the subject's right side (the nose points to the picture's right)",
}
N_POINTS = 5
OVERLAY_TILE = 336
"""Side in pixels of one picture in an overlay."""
USER_ERROR = 2

RECONSTRUCT_EXAMPLES = """\
The five points are pixels x,y of the photograph, from its top-left corner, in this order (right and left are
the subject's): right eye, left eye, tip of the nose, right corner of the mouth, left corner of the mouth.
Without points, a photograph must be a square crop of the size that the network was trained with.

examples:
  dfmvr reconstruct --front me.png --front-points 203,101,247,104,224,125,203,140,246,141 --out me.glb
  dfmvr reconstruct --left l.jpg --left-points 90,120,150,118,95,160,100,190,140,188 \\
                    --front f.jpg --front-points 80,118,150,118,115,160,90,195,140,195 \\
                    --right r.jpg --right-points 75,118,140,120,130,160,88,190,130,190 \\
                    --out face.glb face.ply --overlay overlay.png
"""


PROTOCOL_NAMES = ("now", "now-metrical", "micc", "df-mvr", "df-mvr-legacy")
EVALUATE_NOTES = """\
A prediction and its scan have the same name but for the ending (.obj .ply .stl .glb .off). Beside each mesh
lie its seven landmarks under the same name (.npy .txt .json, [7, 3] in the mesh's unit): right eye's outer
and inner corner, left eye's inner and outer corner, bottom of the nose, right and left corner of the mouth.

protocols:
  now            NoW: median, mean, std over all scans' vertices; similarity registration
  now-metrical   the same with the predicted size kept
  micc           Deep3DFaceRecon on MICC: point-to-plane RMSE per scan within 95 mm of the nose's tip
  df-mvr         DF-MVR: point-to-plane RMSE per scan on the front of the face
  df-mvr-legacy  what DF-MVR's released code computes and calls RMSE: the mean distance per scan

example:
  dfmvr evaluate --predictions out/ --scans scans/ --protocol now --out now.json
"""


class UserError(ValueError):
    """What the user gave cannot be used; the message is all that is printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (
        ValueError,
        OSError,
    ) as error:  # every error of this project's own is a ValueError that explains itself
        print(f"dfmvr {options.command}: error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="dfmvr",
        description="3D faces from a few photographs.",
        epilog="Jobs that run on Ray: python -m ray_jobs.make_dataset | train | evaluate --help",
    )
    parser.add_argument("--version", action="version", version=f"dfmvr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_face_model(commands)
    _add_reconstruct(commands)
    _add_evaluate(commands)
    _add_import_checkpoint(commands)
    return parser


def _add_face_model(commands: Any) -> None:
    parser = commands.add_parser(
        "face-model",
        help="print what a face model holds; draw it on one sheet; import another one",
        description="Print what a face model holds; draw it on one sheet; import another one.",
        epilog="example: dfmvr face-model --sheet sheet.png",
    )
    parser.add_argument(
        "--path", type=Path, metavar="FILE", help="a face model (.npz); default: the one shipped"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="draw mean, modes, expressions, labels and landmarks here"
    )
    parser.set_defaults(run=run_face_model)
    actions = parser.add_subparsers(metavar="ACTION")
    importer = actions.add_parser(
        "import",
        help="make a face model of another project's file",
        description="Make a face model (.npz) of another project's file, which you need a licence for.",
        epilog="example: dfmvr face-model import bfm BFM_model_front.mat --out bfm.npz",
    )
    importer.add_argument("kind", choices=("bfm",), help="bfm: the Basel Face Model, BFM_model_front.mat")
    importer.add_argument("source", type=Path, metavar="PATH", help="the file")
    importer.add_argument("--out", type=Path, required=True, metavar="FILE", help="the face model to write")
    importer.set_defaults(run=run_import_face_model)


def _add_reconstruct(commands: Any) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="photographs in, a 3D face out",
        description="Reconstruct a face from one to three photographs.",
        epilog=RECONSTRUCT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for view, meaning in VIEWS.items():
        parser.add_argument(f"--{view}", type=Path, metavar="IMAGE", help=f"photograph of {meaning}")
        parser.add_argument(
            f"--{view}-points", type=parse_points, metavar="X1,Y1,...,X5,Y5", help="its five points"
        )
    parser.add_argument(
        "--out", type=Path, nargs="+", required=True, metavar="FILE", help="meshes to write: .glb, .obj, .ply"
    )
    parser.add_argument(
        "--overlay", type=Path, metavar="PNG", help="draw the face over the photographs, to judge the fit"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a trained model, such as runs/ID/model; default: the one shipped",
    )
    parser.set_defaults(run=run_reconstruct)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure meshes of any project against scans",
        description="Measure predicted meshes against scans by the protocol of a published benchmark.",
        epilog=EVALUATE_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in (("predictions", "predicted meshes"), ("scans", "true surfaces")):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=f"folder of {what}")
    parser.add_argument("--protocol", required=True, choices=PROTOCOL_NAMES, help="see below")
    for name in ("prediction", "scan"):
        parser.add_argument(
            f"--{name}-unit", choices=("um", "mm", "cm", "m"), default="mm", help="unit of length (mm)"
        )
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the numbers here, face by face")
    parser.set_defaults(run=run_evaluate)


def _add_import_checkpoint(commands: Any) -> None:
    parser = commands.add_parser(
        "import-checkpoint",
        help="make a model of the weights that the DF-MVR authors released",
        description="Make a model folder of the weights (.pth) that the DF-MVR authors released.",
        epilog="example: dfmvr import-checkpoint df_mvr.pth --face-model bfm.npz --out df_mvr",
    )
    parser.add_argument("source", type=Path, metavar="PATH", help="their checkpoint; none of its code is run")
    parser.add_argument(
        "--face-model",
        type=Path,
        required=True,
        metavar="FILE",
        help="what its coefficients belong to: the Basel Face Model (dfmvr face-model import bfm)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder to write")
    parser.set_defaults(run=run_import_checkpoint)


def parse_points(text: str) -> NDArray[np.float64]:
    """Parse `x1,y1,...,x5,y5` into [5, 2] pixels."""
    import numpy as np

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers x1,y1,...,x5,y5, got {text!r}") from error
    if len(numbers) != 2 * N_POINTS:
        raise argparse.ArgumentTypeError(
            f"expected {2 * N_POINTS} numbers x1,y1,...,x5,y5, got {len(numbers)} in {text!r}"
        )
    return np.array(numbers).reshape(N_POINTS, 2)


def run_face_model(options: argparse.Namespace) -> None:
    """Print what a face model holds; draw its sheet."""
    from dfmvr.morphable.model import MorphableModel

    models = [MorphableModel.load(options.path, level) for level in (1, 2)]
    model = models[0]
    sizes = ", ".join(
        f"level {m.level}: {len(m.mean_shape):,} vertices, {len(m.triangles):,} triangles" for m in models
    )
    print(f"face model  {options.path or 'shipped with dfmvr'}")
    print(f"hash        {model.hash}")
    print(f"licence     {model.licence}")
    print(f"credits     {model.credits}")
    print(f"mesh        {sizes}")
    print(
        f"modes       identity {len(model.identity_basis)}, expression {len(model.expression_basis)}, "
        f"albedo {len(model.albedo_basis)}"
    )
    print(f"expressions {', '.join(model.expression_names)}")
    if options.sheet:
        from dfmvr.visualize import draw_face_model_sheet

        draw_face_model_sheet(options.sheet, options.path)
        print(f"sheet       {options.sheet}")


def run_import_face_model(options: argparse.Namespace) -> None:
    """Write a Basel Face Model as a face model of ours.

    Raises:
        UserError: the file to write does not end in .npz.
    """
    from dfmvr.morphable.bfm import LICENCE, import_bfm

    if options.out.suffix != ".npz":
        raise UserError(f"{options.out}: expected a name that ends in .npz")
    print(f"hash        {import_bfm(options.source, options.out)}")
    print(f"licence     {LICENCE}")
    print(options.out)


def run_import_checkpoint(options: argparse.Namespace) -> None:
    """Write the DF-MVR authors' network as a model folder of ours.

    Raises:
        UserError: the face model is another than the one that its coefficients belong to.
    """
    from dfmvr.morphable.bfm import LICENCE
    from dfmvr.morphable.model import MorphableModel
    from dfmvr.networks.released import import_released

    face_model = MorphableModel.load(options.face_model)
    if face_model.licence != LICENCE:
        raise UserError(
            f"{options.face_model}: expected the Basel Face Model, as `dfmvr face-model import bfm` writes "
            f"it, got a face model of licence {face_model.licence!r}"
        )
    card = import_released(options.source, options.out, face_model.hash)
    print(f"weights     {card.weights_hash}")
    print(f"face model  {card.face_model_hash}")
    print(f"licence     {card.licence}")
    print(options.out)


def run_reconstruct(options: argparse.Namespace) -> None:
    """Reconstruct a face and write it."""
    from dfmvr.export import check_mesh_path, export_mesh
    from dfmvr.predictor import Predictor

    for path in options.out:
        check_mesh_path(path)
    photos = read_photos(options)
    predictor = Predictor.load(options.model)
    views = predictor.prepare(photos)
    face = predictor.reconstruct(views)
    for warning in face.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    facts = {"face_model": predictor.face_model.hash, "weights": predictor.weights_hash}
    for path in options.out:
        print(export_mesh(face.mesh, path, name=path.stem, extras=facts))
    if options.overlay:
        write_overlay(options.overlay, photos, views, face, predictor)
        print(options.overlay)


def read_photos(options: argparse.Namespace) -> dict[str, Photo]:
    """Read the photographs that were named, by view.

    Raises:
        UserError: none was named, one cannot be read, or points come without a photograph.
    """
    from dfmvr.predictor import Photo

    photos = {}
    for view in VIEWS:
        path, points = getattr(options, view), getattr(options, f"{view}_points")
        if path is not None:
            photos[view] = Photo(read_image(path), points)
        elif points is not None:
            raise UserError(f"--{view}-points came without --{view}")
    if not photos:
        raise UserError(f"expected at least one photograph: {', '.join('--' + view for view in VIEWS)}")
    return photos


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as RGB [H, W, 3], turned as its EXIF data say.

    Raises:
        UserError: it does not exist or is no picture.
    """
    import cv2
    import numpy as np

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.stat().st_size else None
    if decoded is None:
        raise UserError(f"{path}: expected a picture (JPEG, PNG, ...), got something else")
    return np.asarray(decoded[..., ::-1], np.uint8)


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
    given = [rows[v] for v, name in enumerate(predictor.card.view_names) if name in photos]
    encoded, data = cv2.imencode(path.suffix or ".png", np.concatenate(given)[..., ::-1])
    if not encoded:
        raise UserError(f"{path}: cannot write a picture of this kind")
    write_atomic(path, data.tobytes())


def run_evaluate(options: argparse.Namespace) -> None:
    """Measure every pair of meshes; print the protocol's numbers.

    Raises:
        UserError: not one face could be measured.
    """
    import json

    from tqdm import tqdm

    from dfmvr.evaluation.mesh_files import pair_files, read_marked_mesh
    from dfmvr.evaluation.published import measure_published, summarise
    from dfmvr.files import write_atomic

    pairs, problems = pair_files(options.predictions, options.scans)
    measured = {}
    for pair in tqdm(pairs, unit="face", desc=options.protocol, dynamic_ncols=True):
        try:
            scan = read_marked_mesh(pair.scan, options.scan_unit)
            prediction = read_marked_mesh(pair.prediction, options.prediction_unit)
            measured[pair.name] = measure_published(options.protocol, scan, prediction)
        except ValueError as error:
            problems.append(f"{pair.name}: {error}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not measured:
        raise UserError(f"expected at least one face to measure, got none of {len(problems)}")
    numbers = summarise(options.protocol, list(measured.values()))
    print(f"{options.protocol}, {len(measured)} faces ({len(problems)} left out)")
    for name, value in numbers.items():
        print(f"{name:<22}{value:8.4f}")
    if options.out:
        faces = {name: summarise(options.protocol, [distances]) for name, distances in measured.items()}
        content = {"protocol": options.protocol, **numbers, "faces": faces, "left_out": problems}
        write_atomic(options.out, (json.dumps(content, indent=2) + "\n").encode())
