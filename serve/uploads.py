"""From a multipart body to photographs; every refusal names the field."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from dfmvr.data.preprocess.landmark import parse_landmarks
from dfmvr.data.preprocess.read_picture import PictureError, decode_picture
from dfmvr.predictor import Photo
from dfmvr.types import FRONT, REGION_NAMES, VIEW_NAMES
from serve.problems import Problem
from serve.settings import ServeSettings

LANDMARKS = "landmarks"
MASKS = {f"{view}_mask": view for view in VIEW_NAMES}
FIELDS = (*VIEW_NAMES, *MASKS, LANDMARKS)
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MASK_FORMATS = ("PNG", "BMP", "TIFF")
MAX_TEXT_BYTES = 200_000
"""Of a field that is no file: landmarks of three views take some 5,000."""
MIN_SIDE, MAX_RATIO = 8, 50
"""Pixels of a picture's shorter side, and how many times as long the other may be; faces need more anyway."""
_ITEM_FIELD = re.compile(r"(0|[1-9][0-9]{0,3})\.(.+)")

Form = Mapping[str, bytes]


class _Parser(MultiPartParser):
    """Starlette's parser, which takes a body that breaks off for a whole one, told to notice its end."""

    complete = False

    def on_end(self) -> None:
        """Note that the last boundary has come."""
        self.complete = True


async def read_form(request: Request, settings: ServeSettings, n_items: int = 1) -> dict[str, bytes]:
    """Read a multipart body into memory; nothing of it touches a disk.

    Args:
        request: whose body is unread.
        settings: with the limits.
        n_items: faces that it may describe.

    Raises:
        Problem: it is no multipart body, or has fields twice, without a name, or too many of them.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise Problem(
            415,
            f"expected a body of multipart/form-data, got {kind or 'none'}",
            "Content-Type",
            "not_multipart",
        )
    most = len(FIELDS) * n_items
    parser = _Parser(
        request.headers, request.stream(), max_files=most, max_fields=most, max_part_size=MAX_TEXT_BYTES
    )
    # above this size Starlette would spool pictures to disk
    parser.spool_max_size = int(settings.max_body_mb * 1e6) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _not_multipart(error.message) from error
    except (AttributeError, TypeError, ValueError, LookupError) as error:  # the parser's, for broken headers
        raise _not_multipart("a part that cannot be read") from error
    except ClientDisconnect as error:  # nobody reads the answer, but it is counted
        raise _not_multipart("half of it") from error
    if not parser.complete:
        raise _not_multipart("a body without its end")
    fields: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise Problem(422, f"{name}: expected once, got it twice", name, "field_twice")
        fields[name] = await value.read() if isinstance(value, UploadFile) else value.encode()
    return fields


def _not_multipart(came: str) -> Problem:
    return Problem(400, f"body: expected multipart/form-data, got: {came}", reason="bad_multipart")


def split_items(form: Form, most: int) -> list[tuple[int, dict[str, bytes]]]:
    """Sort the fields `INDEX.FIELD` of several faces by their index.

    Raises:
        Problem: a name has another form, an index is missing, or there are too many or none.
    """
    items: dict[int, dict[str, bytes]] = {}
    for name, data in form.items():
        match = _ITEM_FIELD.fullmatch(name)
        if match is None:
            raise Problem(
                422, f"{name[:80]!r}: expected INDEX.FIELD such as 0.front", name[:80], "unknown_field"
            )
        items.setdefault(int(match[1]), {})[match[2]] = data
    if not items:
        raise Problem(422, "expected at least one face (0.front), got none", "0.front", "missing_front_view")
    if len(items) > most:
        raise Problem(413, f"expected at most {most} faces, got {len(items)}", reason="too_many_faces")
    if sorted(items) != list(range(len(items))):
        raise Problem(422, f"expected indices 0 to {len(items) - 1}, got {sorted(items)}", reason="bad_index")
    return sorted(items.items())


def read_photos(form: Form, settings: ServeSettings) -> dict[str, Photo]:
    """Decode the pictures, landmarks and masks of one face.

    Raises:
        Problem: a field is unknown, missing or cannot be used.
    """
    _check_names(form)
    given = [view for view in VIEW_NAMES if view in form]
    points = _landmarks(form[LANDMARKS], given) if LANDMARKS in form else {}
    photos = {}
    for view in given:
        image = _picture(form[view], view, settings)
        name = f"{view}_mask"
        mask = _mask(form[name], name, image.shape[:2], settings) if name in form else None
        if view in points:
            _check_place(points[view], view, image.shape[:2])
        photos[view] = Photo(image, points.get(view), mask)
    return photos


def _check_names(form: Form) -> None:
    for name in form:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(FIELDS)}"
            raise Problem(422, f"there is no field {name[:80]!r}{hint}", name[:80], "unknown_field")
    for name, view in MASKS.items():
        if name in form and view not in form:
            raise Problem(422, f"{name}: came without {view}", name, "mask_without_view")
    if FRONT not in form:
        came = ", ".join(view for view in VIEW_NAMES if view in form) or "none"
        raise Problem(422, f"expected the front view, got {came}", FRONT, "missing_front_view")


def _picture(data: bytes, field: str, settings: ServeSettings) -> NDArray[np.uint8]:
    _check_picture(data, field, PICTURE_FORMATS, settings)
    try:
        return decode_picture(data, field)
    except PictureError as error:
        raise Problem(422, str(error), field, "damaged_picture") from error
    except Exception as error:  # damaged files make Pillow raise many kinds
        raise _damaged(field, "damaged_picture") from error


def _check_picture(data: bytes, field: str, formats: tuple[str, ...], settings: ServeSettings) -> None:
    """Look at a picture's header: what it is, and how large it would become."""
    expected = ", ".join(formats)
    if not data:
        raise Problem(
            422, f"{field}: expected a picture ({expected}), got an empty file", field, "empty_file"
        )
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise Problem(
            415, f"{field}: expected a picture ({expected}), got something else", field, "not_a_picture"
        ) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(field, settings, "far more") from None
    except Exception as error:  # damaged headers make Pillow raise many kinds
        raise _damaged(field, "damaged_picture") from error
    if width * height > settings.max_megapixels * 1e6:
        raise _too_many_pixels(field, settings, f"{width} x {height}")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        expected = f"sides of at least {MIN_SIDE} px, one at most {MAX_RATIO} times the other"
        raise Problem(422, f"{field}: expected {expected}, got {width} x {height}", field, "bad_shape")


def _damaged(field: str, reason: str) -> Problem:
    return Problem(422, f"{field}: expected a whole picture, got a damaged one", field, reason)


def _too_many_pixels(field: str, settings: ServeSettings, came: str) -> Problem:
    detail = f"{field}: expected at most {settings.max_megapixels:g} megapixels, got {came}"
    return Problem(413, detail, field, "too_many_pixels")


def _mask(data: bytes, field: str, shape: tuple[int, ...], settings: ServeSettings) -> NDArray[np.uint8]:
    _check_picture(data, field, MASK_FORMATS, settings)
    try:
        with Image.open(io.BytesIO(data), formats=MASK_FORMATS) as image:
            labels = np.array(image)
    except Exception as error:  # as in _picture
        raise _damaged(field, "bad_mask") from error
    most = len(REGION_NAMES) - 1
    if labels.shape != tuple(shape):
        raise Problem(
            422,
            f"{field}: expected labels {list(shape)} as the picture, got {list(labels.shape)}",
            field,
            "bad_mask",
        )
    if labels.dtype.kind == "f" or labels.min() < 0 or labels.max() > most:
        raise Problem(
            422,
            f"{field}: expected labels 0 to {most}, got {labels.dtype} {labels.min()} to {labels.max()}",
            field,
            "bad_mask",
        )
    return labels.astype(np.uint8)


def _landmarks(data: bytes, views: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read the landmarks of some views: JSON, by view name, 68 or 5 pairs of pixels each."""
    expected = f"{LANDMARKS}: expected a JSON object with some of {', '.join(views)}"
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(422, f"{expected}, got no JSON", LANDMARKS, "bad_landmarks") from error
    if not isinstance(content, dict) or not set(content) <= set(views):
        came = (
            ", ".join(map(repr, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        )
        raise Problem(422, f"{expected}, got {came[:200]}", LANDMARKS, "bad_landmarks")
    points = {}
    for view, value in content.items():
        try:
            points[view] = parse_landmarks(json.dumps(value).encode(), f"{LANDMARKS}.{view}")
        except (ValueError, OverflowError, RecursionError) as error:
            raise Problem(422, str(error)[:400], f"{LANDMARKS}.{view}", "bad_landmarks") from error
    return points


def _check_place(points: NDArray[np.float64], view: str, shape: tuple[int, ...]) -> None:
    """Refuse landmarks [K, 2] that lie beside their picture [H, W]: those of another one, most likely."""
    height, width = shape
    x, y = np.median(points, 0)
    if not (0 <= x <= width and 0 <= y <= height):
        field = f"{LANDMARKS}.{view}"
        detail = (
            f"{field}: expected pixels of a picture of {width} x {height}, got a face at {x:.6g}, {y:.6g}"
        )
        raise Problem(422, detail, field, "bad_landmarks")
