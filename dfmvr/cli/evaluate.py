"""`dfmvr evaluate`: measure meshes of any project against scans."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfmvr.cli.errors import UserError

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


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
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
