"""`dfmvr import-checkpoint`: make a model of the weights that the DF-MVR authors released."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfmvr.cli.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
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
