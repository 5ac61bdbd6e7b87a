"""`dfmvr inspect`: say what a data set holds, draw some of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfmvr.cli.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
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
