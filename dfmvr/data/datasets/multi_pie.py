"""Multi-PIE (Gross et al. 2008) in the cropped version that TP-GAN's authors pass on.

`multi_PIE_crop_128/<subject>/<subject>_<session>_<recording>_<camera>_<light>_crop_128.png`. Cameras to the
subject's left show that side (yaw < 0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from dfmvr.data import storage
from dfmvr.data.datasets.records import Picture, Problem, Record, name_of, subfolders
from dfmvr.types import VIEW_NAMES

YAWS = {
    "090": -60,
    "080": -45,
    "130": -30,
    "140": -15,
    "051": 0,
    "050": 15,
    "041": 30,
    "190": 45,
    "200": 60,
}
"""Nominal degrees of the cameras that the cropped version holds."""
N_LIGHTS = 20
"""Lights 00-19; 00 is the room's alone, 07 the flash beside the frontal camera."""
FOLDER = "multi_PIE_crop_128"

_NAME = re.compile(r"(\d{3})_(\d{2})_(\d{2})_(\d{3})_(\d{2})_crop_\d+\.png")
_Moment = tuple[str, str, str]
"""Session, recording, light."""


def iter_records(
    root: str, *, cameras: str = "080,051,190", lights: str = "07"
) -> Iterator[Record | Problem]:
    """Read a triple of cameras: a record for each subject, session, recording and light.

    Args:
        root: FOLDER, or the folder that holds it; local or s3://.
        cameras: left, front and right, out of YAWS.
        lights: two digits each, with commas between, or "all".

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: it has no folders of subjects, a camera or light is unknown, or a camera's side is wrong.
    """
    triple, chosen = _cameras(cameras), _lights(lights)
    folders = subfolders(root, FOLDER)
    inner = [folder for folder in folders if name_of(folder) == FOLDER]
    folders = subfolders(inner[0], "folders of subjects") if inner else folders
    subjects = [folder for folder in folders if re.fullmatch(r"\d{3}", name_of(folder))]
    if not subjects:
        names = ", ".join(map(name_of, folders[:5]))
        raise ValueError(f"{root}: expected {FOLDER} or folders of subjects such as 001, got {names}")
    return (item for subject in subjects for item in _subject(subject, triple, chosen))


def _cameras(text: str) -> tuple[str, ...]:
    cameras = tuple(text.split(","))
    unknown = [camera for camera in cameras if camera not in YAWS]
    if unknown or len(cameras) != len(VIEW_NAMES):
        raise ValueError(f"cameras: expected left, front and right out of {', '.join(YAWS)}, got {text!r}")
    left, front, right = (YAWS[camera] for camera in cameras)
    if not left < front < right:
        raise ValueError(
            f"cameras: expected the left one first and the right one last, got {text!r} at "
            f"{left}, {front} and {right} degrees"
        )
    return cameras


def _lights(text: str) -> frozenset[str]:
    known = frozenset(f"{light:02}" for light in range(N_LIGHTS))
    lights = known if text == "all" else frozenset(text.split(","))
    if not lights <= known:
        raise ValueError(f"lights: expected 00 to {N_LIGHTS - 1}, with commas between, or all; got {text!r}")
    return lights


def _subject(folder: str, cameras: tuple[str, ...], lights: frozenset[str]) -> Iterator[Record | Problem]:
    subject, moments = name_of(folder), dict[_Moment, dict[str, str]]()
    for file in storage.list_files(folder, ".png"):
        parts = _NAME.fullmatch(name_of(file))
        if parts is None or parts[1] != subject:
            yield Problem(
                file, f"{subject}_<session>_<recording>_<camera>_<light>_crop_128.png", "another name"
            )
        elif parts[4] in cameras and parts[5] in lights:
            moments.setdefault((parts[2], parts[3], parts[5]), {})[parts[4]] = file
    if not moments:
        yield Problem(folder, f"pictures of the cameras {', '.join(cameras)}", "none in the chosen lights")
    for moment, files in sorted(moments.items()):
        expression = "_".join(moment)
        missing = [camera for camera in cameras if camera not in files]
        if missing:
            wanted = f"pictures of the cameras {', '.join(cameras)}"
            yield Problem(storage.join(folder, f"{subject}_{expression}"), wanted, f"no {', '.join(missing)}")
            continue
        pictures = {
            name: Picture(files[camera], yaw=math.radians(YAWS[camera]))
            for name, camera in zip(VIEW_NAMES, cameras, strict=True)
        }
        yield Record(subject, expression, pictures)
