"""The command line `dfmvr`: one function a command, errors of the user's as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
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
FINDERS = ("auto", "dlib", "face_alignment")
DEFAULT_OUT = ("face.glb", "face.obj")
DEFAULT_OVERLAY = "face_overlay.png"
BYSTANDER_SHARE = 0.5
"""Further faces in a photograph are passers-by when smaller than this share of the largest one's side."""
OVERLAY_TILE = 336
"""Side in pixels of one picture in an overlay."""
USER_ERROR = 2

RECONSTRUCT_EXAMPLES = """\
The face is found where dlib-bin is installed (pip install 'dfmvr[photos-dlib]'), or given by its points. The
five points are pixels x,y of the photograph, from its top-left corner, in this order (right and left are the
subject's): right eye, left eye, tip of the nose, right corner of the mouth, left corner of the mouth. A JSON
file holds these five pairs, or 68 in iBUG's order. A square picture of the size that the network was trained
with is taken as a crop.

examples:
  dfmvr reconstruct me.jpg
  dfmvr reconstruct left.jpg front.jpg right.jpg --out face.glb --overlay overlay.png
  dfmvr reconstruct --front me.png --front-points 203,101,247,104,224,125,203,140,246,141 --out me.glb
  dfmvr reconstruct --left l.jpg --left-points 90,120,150,118,95,160,100,190,140,188 \\
                    --front f.jpg --front-points 80,118,150,118,115,160,90,195,140,195 \\
                    --right r.jpg --right-points 75,118,140,120,130,160,88,190,130,190 \\
                    --out face.glb face.ply --overlay overlay.png
  dfmvr reconstruct --front crop.png --model df_mvr --face-model bfm.npz --out face.obj
"""


PROTOCOL_NAMES = ("now", "now-metrical", "micc", "df-mvr", "df-mvr-legacy", "realy")
EVALUATE_NOTES = """\
A prediction and its scan have the same name but for the ending (.obj .ply .stl .glb .off). Beside each mesh
lie its seven landmarks under the same name (.npy .txt .json, [7, 3] in the mesh's unit): right eye's outer
and inner corner, left eye's inner and outer corner, bottom of the nose, right and left corner of the mouth.
A scan may also be Bosphorus' .bnt with its .lm3, in the folder or in those of its subjects.

protocols:
  now            NoW: median, mean, std over all scans' vertices; similarity registration
  now-metrical   the same with the predicted size kept
  micc           Deep3DFaceRecon on MICC: point-to-plane RMSE per scan within 95 mm of the nose's tip
  df-mvr         DF-MVR: point-to-plane RMSE per scan on the front of the face
  df-mvr-legacy  what DF-MVR's released code computes and calls RMSE: the mean distance per scan
  realy          like REALY: errors of nose, mouth, forehead and cheek, each aligned and warped by itself.
                 The landmarks tell the regions, or NAME.regions.txt beside the scan: a number a vertex,
                 0-3 in this order, or -1

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
    _add_inspect(commands)
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
    parser.add_argument(
        "--out", type=Path, nargs="+", metavar="FILE", help=f"meshes to write ({' '.join(DEFAULT_OUT)})"
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="PNG",
        help=f"draw the face over the photographs, to judge the fit (without --out: {DEFAULT_OVERLAY})",
    )
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


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="say what a data set holds; draw some of it on one sheet",
        description="Say what a data set holds; draw views, landmarks, masks and weight maps on one sheet.",
        epilog="example: dfmvr inspect s3://bucket/faces --sheet sheet.png --split test",
    )
    parser.add_argument("uri", metavar="URI", help="its folder, local or s3://")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw samples here")
    parser.add_argument("--split", default="train", help="that the drawn samples are of (train)")
    parser.add_argument(
        "--samples",
        type=int,
        default=8,
        metavar="N",
        help="samples that are read of each split, and drawn (8)",
    )
    parser.set_defaults(run=run_inspect)


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

    meshes = options.out or [Path(name) for name in DEFAULT_OUT]
    overlay = options.overlay or (None if options.out else Path(DEFAULT_OVERLAY))
    for path in meshes:
        check_mesh_path(path)
    photos = read_photos(options)
    predictor = Predictor.load(options.model, options.face_model)
    photos = find_faces(photos, predictor.image_size, options.landmarks)
    views = predictor.prepare(photos)
    face = predictor.reconstruct(views)
    for warning in face.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    facts = {"face_model": predictor.face_model.hash, "weights": predictor.weights_hash}
    for path in meshes:
        print(export_mesh(face.mesh, path, name=path.stem, extras=facts))
    if overlay:
        write_overlay(overlay, photos, views, face, predictor)
        print(overlay)


def read_photos(options: argparse.Namespace) -> dict[str, Photo]:
    """Read the photographs that were named, by view.

    Raises:
        UserError: none was named, one cannot be read, or points come without a photograph.
    """
    from dfmvr.predictor import Photo

    paths = {view: getattr(options, view) for view in VIEWS if getattr(options, view) is not None}
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


def find_faces(photos: dict[str, Photo], image_size: int, backend: str) -> dict[str, Photo]:
    """Find the face's 68 landmarks in photographs that come without points and are no crops.

    Args:
        photos: by view.
        image_size: side of a crop in pixels.
        backend: one of FINDERS.

    Raises:
        UserError: a photograph shows no face or several, or the backend is not installed.
    """
    import dataclasses

    from dfmvr.data.preprocess.detect import PackageMissing, PictureRejected
    from dfmvr.data.preprocess.landmark import build_finder

    crop = (image_size, image_size)
    wanted = [
        view for view, photo in photos.items() if photo.points is None and photo.image.shape[:2] != crop
    ]
    if not wanted:
        return photos
    try:
        finder = build_finder(backend, BYSTANDER_SHARE)
    except PackageMissing as error:
        raise UserError(
            f"{wanted[0]} view: expected points (--{wanted[0]}-points), a crop of {image_size} x "
            f"{image_size} px, or what finds the face: {error}"
        ) from error
    found = dict(photos)
    for view, result in zip(wanted, finder([photos[view].image for view in wanted]), strict=True):
        if isinstance(result, PictureRejected):
            raise UserError(f"{view} view: {result.detail}")
        found[view] = dataclasses.replace(photos[view], points=result.points)
    return found


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


def run_inspect(options: argparse.Namespace) -> None:
    """Say what a data set holds; draw some of its samples.

    Raises:
        UserError: a name or a number is wrong, or there is no sample to draw.
    """
    import cv2

    from dfmvr.data.contact_sheet import describe, draw_sheet, read_part
    from dfmvr.data.manifest import SPLITS
    from dfmvr.data.settings import DataSettings
    from dfmvr.files import write_atomic

    if options.split not in SPLITS or options.samples < 1:
        raise UserError(
            f"expected --split out of {', '.join(SPLITS)} and --samples of at least 1, "
            f"got {options.split} and {options.samples}"
        )
    parts = {split: read_part(options.uri, split, options.samples) for split in SPLITS}
    print("\n".join(describe(options.uri, parts)))
    if options.sheet:
        samples = parts[options.split].samples
        if not samples:
            raise UserError(f"{options.uri}: expected samples in the split {options.split}, got none to draw")
        sheet = draw_sheet(list(samples), DataSettings().weight_dilation)
        write_atomic(options.sheet, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
        print(f"sheet       {options.sheet}")


def run_evaluate(options: argparse.Namespace) -> None:
    """Measure every pair of meshes; print the protocol's numbers.

    Raises:
        UserError: not one face could be measured.
    """
    import json

    from tqdm import tqdm

    from dfmvr.evaluation.bnt import read_scan
    from dfmvr.evaluation.mesh_files import pair_files, read_marked_mesh
    from dfmvr.files import write_atomic

    pairs, problems = pair_files(options.predictions, options.scans)
    measure, summarise = _measuring(options.protocol)
    measured = {}
    for pair in tqdm(pairs, unit="face", desc=options.protocol, dynamic_ncols=True):
        try:
            scan = read_scan(pair.scan, options.scan_unit)
            prediction = read_marked_mesh(pair.prediction, options.prediction_unit)
            measured[pair.name] = measure(scan, prediction)
        except ValueError as error:
            problems.append(f"{pair.name}: {error}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not measured:
        raise UserError(f"expected at least one face to measure, got none of {len(problems)}")
    numbers = summarise(list(measured.values()))
    print(f"{options.protocol}, {len(measured)} faces ({len(problems)} left out)")
    for name, value in numbers.items():
        if isinstance(value, dict):  # of one region
            print(f"{name:<10}" + "".join(f"{key:>10} {number:7.4f}" for key, number in value.items()))
        else:
            print(f"{name:<22}{value:8.4f}")
    if options.out:
        faces = {name: summarise([found]) for name, found in measured.items()}
        content = {"protocol": options.protocol, **numbers, "faces": faces, "left_out": problems}
        write_atomic(options.out, (json.dumps(content, indent=2) + "\n").encode())


def _measuring(protocol: str) -> tuple[Callable[..., Any], Callable[..., dict[str, Any]]]:
    """Return what measures (scan, prediction), and what makes numbers of such measurements."""
    from functools import partial

    from dfmvr.evaluation.published import measure_published, summarise
    from dfmvr.evaluation.realy import measure_realy, summarise_realy

    if protocol == "realy":
        return measure_realy, summarise_realy
    return partial(measure_published, protocol), partial(summarise, protocol)
