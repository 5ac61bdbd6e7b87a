"""A user's own photographs: `<subject>/<shot>/{left,front,right}.jpg`, or any number of them with their yaws.

Where a shot has a `views.json`, that lists its photographs, in any number and under any names:

    [{"file": "IMG_1.jpg", "yaw": -40}, {"file": "IMG_2.jpg", "yaw": 0}, {"file": "IMG_3.jpg", "yaw": 35}]

`yaw` is in degrees; left views, in which the nose points to the picture's left, have yaw < 0. More than three
make several records (records.triples).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from dfmvr.data import storage
from dfmvr.data.datasets.records import (
    BadFile,
    Picture,
    Problem,
    Record,
    check_file,
    name_of,
    read_file,
    subfolders,
    triples,
)
from dfmvr.types import FRONT, VIEW_NAMES

VIEWS_FILE = "views.json"
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
KEYS = ("file", "yaw")


def iter_records(root: str) -> Iterator[Record | Problem]:
    """Read a user's folder; a shot may lack views.

    Args:
        root: local or s3://.

    Raises:
        NotADirectoryError: there is no such folder, or it holds no folders of subjects.
    """
    subjects = subfolders(root, f"<subject>/<shot>/{{{','.join(VIEW_NAMES)}}}.jpg")
    return (item for subject in subjects for item in _subject(subject))


def _subject(subject: str) -> Iterator[Record | Problem]:
    shots = storage.list_folders(subject)
    if not shots:
        yield Problem(subject, "a folder for each shot", "none")
    for shot in shots:
        views_file = storage.join(shot, VIEWS_FILE)
        if not storage.exists(views_file):
            yield from _named(subject, shot)
            continue
        try:
            groups = triples(_listed(views_file, shot))
        except BadFile as error:
            yield error.problem
            continue
        for number, pictures in enumerate(groups):
            expression = name_of(shot) if len(groups) == 1 else f"{name_of(shot)}-{number}"
            yield Record(name_of(subject), expression, pictures)


def _named(subject: str, shot: str) -> Iterator[Record | Problem]:
    """Take left, front and right by their names."""
    pictures = dict[str, Picture]()
    for file in storage.list_files(shot):
        view, _, ending = name_of(file).lower().rpartition(".")
        if f".{ending}" not in ENDINGS:
            continue
        if view not in VIEW_NAMES or view in pictures:
            once = "each once" if view in pictures else f"or a {VIEWS_FILE}"
            yield Problem(file, f"{', '.join(VIEW_NAMES)}, {once}", name_of(file))
            continue
        pictures[view] = Picture(file, yaw=0.0 if view == FRONT else math.nan)
    if pictures:
        yield Record(name_of(subject), name_of(shot), {v: pictures[v] for v in VIEW_NAMES if v in pictures})
    else:
        yield Problem(shot, f"{', '.join(VIEW_NAMES)} ({', '.join(ENDINGS)})", "none of them")


def _listed(views_file: str, shot: str) -> list[Picture]:
    """Return the photographs that a `views.json` lists.

    Raises:
        BadFile: it is no such list, two have one yaw, or a photograph is missing.
    """
    expected = 'a list of {"file": name, "yaw": degrees}'
    try:
        entries = json.loads(read_file(views_file, expected))
    except ValueError as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(views_file, expected, str(error)) from error
    if not isinstance(entries, list) or not entries:
        raise BadFile(views_file, expected, f"{type(entries).__name__} of {len(entries or ())} entries")
    pictures = [_picture(views_file, shot, entry, f"{expected}, yaw from -90 to 90") for entry in entries]
    yaws = [picture.yaw for picture in pictures]
    if len(set(yaws)) != len(yaws):
        listed = ", ".join(f"{math.degrees(yaw):g}" for yaw in yaws)
        raise BadFile(views_file, "photographs of different yaws", listed)
    return pictures


def _picture(views_file: str, shot: str, entry: Any, expected: str) -> Picture:
    valid = isinstance(entry, dict) and set(entry) == set(KEYS) and isinstance(entry["file"], str)
    yaw = entry["yaw"] if valid else None
    if isinstance(yaw, bool) or not isinstance(yaw, int | float) or not -90 <= yaw <= 90:
        raise BadFile(views_file, expected, json.dumps(entry)[:100])
    if name_of(entry["file"]) != entry["file"]:
        raise BadFile(views_file, f"a file of {name_of(shot)}/", entry["file"])
    return Picture(
        check_file(storage.join(shot, entry["file"]), f"the photograph that {VIEWS_FILE} names"),
        yaw=math.radians(yaw),
    )
