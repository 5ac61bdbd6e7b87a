"""`dfmvr face-model`: say what a face model holds, draw it, import another project's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfmvr.cli.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
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
    parser.set_defaults(run=run)
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
    importer.set_defaults(run=run_import)


def run(options: argparse.Namespace) -> None:
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


def run_import(options: argparse.Namespace) -> None:
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
