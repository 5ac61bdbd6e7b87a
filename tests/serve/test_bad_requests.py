"""Requests that are refused: each with its status, the field to blame, and the reason."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.api import build_api
from serve.engine import Engine
from serve.problems import Problem
from serve.settings import ServeSettings
from serve.telemetry import exposition
from serve.uploads import read_photos
from tests.serve.conftest import POINTS, SIZE, asking, endpoint_of, jpeg, picture_file, png, problem

ONE, MANY, AVATARS = "/v1/reconstructions", "/v1/reconstructions:batch", "/v1/avatars"
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
CROP = png(NOISE)
PHOTO = png(RNG.integers(0, 256, (300, 320, 3), np.uint8))
"""A picture that is no crop: it needs landmarks, or a face."""
BOUNDARY = "frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, data: bytes, more: str = '; filename="a.png"') -> bytes:
    return (
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + data
        + b"\r\n"
    )


END = f"--{BOUNDARY}--\r\n".encode()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims a size, whatever its pixels say."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than its pixels have."""
    data = jpeg(NOISE)
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def wrong_exif() -> bytes:
    """EXIF data that ask for a turn, with an ImageWidth whose type (bytes) Pillow cannot write again."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 5
    return exif.tobytes().replace(b"\x01\x00\x00\x04", b"\x01\x00\x00\x01")


def zip_of(name: str, data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return packed.getvalue()


def labels(
    value: float, kind: str = "PNG", dtype: type = np.uint8, shape: tuple[int, ...] = (SIZE, SIZE)
) -> bytes:
    return picture_file(np.full(shape, value, dtype), kind)


@dataclass(frozen=True)
class Bad:
    """A request and what it must be told."""

    name: str
    status: int
    field: str
    reason: str
    files: dict[str, bytes] = field(default_factory=dict)
    landmarks: str | None = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ONE
    method: str = "POST"

    def send(self, client: TestClient) -> Any:
        if self.content is not None or self.method != "POST":
            return client.request(self.method, self.path, content=self.content, headers=self.headers)
        files = {name: (f"{name}.png", data, "image/png") for name, data in self.files.items()}
        data = {} if self.landmarks is None else {"landmarks": self.landmarks}
        return client.post(self.path, files=files or None, data=data, headers=self.headers)


def raw(name: str, status: int, field: str, reason: str, content: bytes, **changes: Any) -> Bad:
    return Bad(name, status, field, reason, content=content, **({"headers": FORM} | changes))


def picture(name: str, status: int, reason: str, data: bytes) -> Bad:
    return Bad(name, status, "front", reason, {"front": data})


def mask(name: str, status: int, reason: str, data: bytes) -> Bad:
    return Bad(name, status, "front_mask", reason, {"front": CROP, "front_mask": data})


def points(name: str, text: str, field: str = "landmarks.front", reason: str = "bad_landmarks") -> Bad:
    return Bad(name, 422, field, reason, {"front": PHOTO}, landmarks=text)


def five(first: str) -> str:
    """Landmarks as JSON whose first point is something else."""
    return f'{{"front": [{first}, [247, 104], [224, 125], [203, 140], [246, 141]]}}'


ROUTES = [
    Bad("a path that does not exist", 404, "", "not_found", path="/v1/nothing"),
    Bad("a path out of the house", 404, "", "not_found", path="/v1/%2e%2e/%2e%2e/etc/passwd", method="GET"),
    Bad("GET where one posts", 405, "", "method_not_allowed", method="GET"),
    Bad("DELETE the model", 405, "", "method_not_allowed", path="/v1/model", method="DELETE"),
    Bad(
        "a format that does not exist",
        422,
        "format",
        "bad_parameter",
        {"front": CROP},
        path=f"{ONE}?format=stl",
    ),
    Bad("an empty format", 422, "format", "bad_parameter", {"front": CROP}, path=f"{ONE}?format="),
    Bad("a batch as GLB", 422, "format", "bad_parameter", {"0.front": CROP}, path=f"{MANY}?format=glb"),
    Bad(
        "Accept text/html", 406, "Accept", "not_acceptable", {"front": CROP}, headers={"accept": "text/html"}
    ),
    Bad("Accept nothing", 406, "Accept", "not_acceptable", {"front": CROP}, headers={"accept": "*/*;q=0"}),
    Bad(
        "an empty key",
        422,
        "Idempotency-Key",
        "bad_idempotency_key",
        {"front": CROP},
        headers={"idempotency-key": ""},
    ),
    Bad(
        "a long key",
        422,
        "Idempotency-Key",
        "bad_idempotency_key",
        {"front": CROP},
        headers={"idempotency-key": "k" * 201},
    ),
]
BODIES = [
    raw("JSON", 415, "Content-Type", "not_multipart", b"{}", headers={"content-type": "application/json"}),
    raw("no content type", 415, "Content-Type", "not_multipart", b"x", headers={}),
    raw(
        "the picture itself",
        415,
        "Content-Type",
        "not_multipart",
        CROP,
        headers={"content-type": "image/png"},
    ),
    raw(
        "a form of text",
        415,
        "Content-Type",
        "not_multipart",
        b"front=x",
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    raw(
        "multipart of another kind",
        415,
        "Content-Type",
        "not_multipart",
        END,
        headers={"content-type": "multipart/mixed; boundary=x"},
    ),
    raw("no boundary", 400, "", "bad_multipart", END, headers={"content-type": "multipart/form-data"}),
    raw(
        "an empty boundary",
        400,
        "",
        "bad_multipart",
        END,
        headers={"content-type": "multipart/form-data; boundary="},
    ),
    raw(
        "a broken boundary",
        400,
        "",
        "bad_multipart",
        END,
        headers={"content-type": 'multipart/form-data; boundary="'},
    ),
    raw(
        "another boundary",
        400,
        "",
        "bad_multipart",
        part("front", CROP),
        headers={"content-type": "multipart/form-data; boundary=other"},
    ),
    raw("an empty body", 400, "", "bad_multipart", b""),
    raw("noise", 400, "", "bad_multipart", bytes(RNG.integers(0, 256, 5000, np.uint8))),
    raw("half a part", 400, "", "bad_multipart", part("front", CROP)[:-500]),
    raw("a lost second half", 400, "", "bad_multipart", part("front", CROP) + part("left", CROP)[:-500]),
    raw("no end", 400, "", "bad_multipart", part("front", CROP)),
    raw(
        "a part without a name",
        400,
        "",
        "bad_multipart",
        f"--{BOUNDARY}\r\ncontent-disposition: form-data\r\n\r\nx\r\n".encode() + END,
    ),
    raw("a part without headers", 400, "", "bad_multipart", f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END),
    raw(
        "a header without a colon",
        400,
        "",
        "bad_multipart",
        f"--{BOUNDARY}\r\nnonsense\r\n\r\nx\r\n".encode() + END,
    ),
    raw(
        "a header of 100 kB",
        400,
        "",
        "bad_multipart",
        part("front", CROP, f'; filename="{"a" * 100_000}"') + END,
    ),
    raw(
        "a character set that reads nothing",
        400,
        "",
        "bad_multipart",
        part("front", CROP) + END,
        headers={"content-type": FORM["content-type"] + "; charset=undefined"},
    ),
    raw("a name of 10 kB", 400, "", "bad_multipart", part("n" * 10_000, CROP) + END),
    raw(
        "a thousand fields",
        400,
        "",
        "bad_multipart",
        b"".join(part(f"f{k}", b"", "") for k in range(1000)) + END,
    ),
    raw("a text field of 250 kB", 400, "", "bad_multipart", part("landmarks", b"1" * 250_000, "") + END),
    raw("5 MB", 413, "", "body_too_large", part("front", bytes(5_000_000)) + END),
    raw(
        "a length that is none",
        400,
        "Content-Length",
        "bad_content_length",
        b"x",
        headers=FORM | {"content-length": "-1"},
    ),
    raw(
        "a length of 5000 digits",
        400,
        "Content-Length",
        "bad_content_length",
        b"x",
        headers=FORM | {"content-length": "9" * 5000},
    ),
    raw(
        "a length of a petabyte", 413, "", "body_too_large", b"x", headers=FORM | {"content-length": "9" * 15}
    ),
]
FIELDS = [
    raw("no field", 422, "front", "missing_front_view", END),
    Bad("no front view", 422, "front", "missing_front_view", {"left": CROP, "right": CROP}),
    Bad("landmarks alone", 422, "front", "missing_front_view", landmarks="{}", files={"left": CROP}),
    Bad("a field that does not exist", 422, "forehead", "unknown_field", {"front": CROP, "forehead": CROP}),
    Bad("a misspelt field", 422, "fromt", "unknown_field", {"fromt": CROP}),
    Bad("FRONT", 422, "FRONT", "unknown_field", {"FRONT": CROP}),
    Bad(
        "a name like a path",
        422,
        "../../etc/passwd",
        "unknown_field",
        {"../../etc/passwd": CROP, "front": CROP},
    ),
    Bad("a name like a path of Windows", 422, "C:/x/front", "unknown_field", {"C:/x/front": CROP}),
    raw("a name with a NUL", 422, "front\0", "unknown_field", part("front\0", CROP) + END),
    raw("a name of 1 kB", 422, "n" * 80, "unknown_field", part("n" * 1000, CROP) + END),
    raw(
        "a name of no text",
        422,
        "\xff\xfe",
        "unknown_field",
        part("NAME", CROP).replace(b"NAME", b"\xff\xfe") + END,
    ),
    raw("an empty name", 422, "", "unknown_field", part("", CROP) + END),
    raw("front twice", 422, "front", "field_twice", 2 * part("front", CROP) + END),
    Bad("a batch's name", 422, "0.front", "unknown_field", {"0.front": CROP}),
    Bad(
        "a mask without its view",
        422,
        "left_mask",
        "mask_without_view",
        {"front": CROP, "left_mask": labels(1)},
    ),
    raw("a picture as text", 415, "front", "not_a_picture", part("front", CROP, "") + END),
]
PICTURES = [
    picture("an empty file", 422, "empty_file", b""),
    picture("text", 415, "not_a_picture", b"hello" * 100),
    picture("HTML", 415, "not_a_picture", b"<!doctype html><script>alert(1)</script>"),
    picture("SVG", 415, "not_a_picture", b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>'),
    picture("a program", 415, "not_a_picture", b"\x7fELF" + bytes(1000)),
    picture(
        "PostScript", 415, "not_a_picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    ),
    picture("HEIC", 415, "not_a_picture", bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(100)),
    picture("GIF", 415, "not_a_picture", picture_file(NOISE, "GIF")),
    picture("a ZIP archive named png", 415, "not_a_picture", zip_of("front.png", CROP)),
    picture("a GIF that is a script", 415, "not_a_picture", b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)"),
    picture("a PDF around a JPEG", 415, "not_a_picture", b"%PDF-1.4\n" + jpeg(NOISE)),
    picture("a page around a PNG", 415, "not_a_picture", b"<html>" + CROP),
    picture("a JPEG that is a page", 415, "not_a_picture", b"\xff\xd8\xff<html>" + b"x" * 500),
    picture("the start of a JPEG", 415, "not_a_picture", b"\xff\xd8\xff\xe0"),
    picture("the start of a PNG", 415, "not_a_picture", b"\x89PNG\r\n\x1a\n"),
    picture("half a JPEG", 422, "damaged_picture", jpeg(NOISE)[:1500]),
    picture("half a PNG", 422, "damaged_picture", CROP[: len(CROP) // 2]),
    picture("half a WebP", 422, "damaged_picture", picture_file(NOISE, "WEBP")[:300]),
    picture("half a TIFF", 422, "damaged_picture", picture_file(NOISE, "TIFF")[:3000]),
    picture("a PNG with a wrong checksum", 422, "damaged_picture", CROP[:45] + b"xxxx" + CROP[49:]),
    picture("a TIFF that points past its end", 415, "not_a_picture", b"II*\0" + b"\xff" * 200),
    picture("a JPEG that claims more than it holds", 422, "no_face", jpeg_of(2000, 2000)),
    picture("a PNG that claims more than it holds", 422, "damaged_picture", png_of(2000, 2000)),
    picture("a PNG of no width", 415, "not_a_picture", png_of(0, 64)),
    picture(
        "a PNG with 100 MB of text",
        422,
        "damaged_picture",
        png_of(64, 64, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
    ),
    picture("wrong EXIF data", 422, "damaged_picture", picture_file(NOISE, "JPEG", exif=wrong_exif())),
    picture("floating pixels", 422, "damaged_picture", labels(0.5, "TIFF", np.float32)),
    picture("a JPEG of 9 megapixels", 413, "too_many_pixels", jpeg_of(3000, 3000)),
    picture("a JPEG of 65,000 x 65,000", 413, "too_many_pixels", jpeg_of(65_000, 65_000)),
    picture("a PNG of a gigapixel", 413, "too_many_pixels", png_of(100_000, 10_000)),
    picture("a PNG of an exapixel", 413, "too_many_pixels", png_of(2**31 - 1, 2**31 - 1)),
    picture("one pixel", 422, "bad_shape", png(NOISE[:1, :1])),
    picture("a pixel's width", 422, "bad_shape", png(np.zeros((2000, 1, 3), np.uint8))),
    picture("a ribbon", 422, "bad_shape", png(np.zeros((10, 2000, 3), np.uint8))),
    mask("a mask of another size", 422, "bad_mask", labels(1, shape=(SIZE, SIZE + 1))),
    mask("a mask with a tenth region", 422, "bad_mask", labels(10)),
    mask("a mask of 16 bits", 422, "bad_mask", labels(300, dtype=np.uint16)),
    mask("a mask in colour", 422, "bad_mask", CROP),
    mask("a mask of fractions", 422, "bad_mask", labels(0.5, "TIFF", np.float32)),
    mask("a mask of NaN", 422, "bad_mask", labels(np.nan, "TIFF", np.float32)),
    mask("half a mask", 422, "bad_mask", png(NOISE[..., 0])[:2000]),
    mask("an empty mask", 422, "empty_file", b""),
    mask("a mask as JPEG", 415, "not_a_picture", picture_file(NOISE[..., 0], "JPEG")),
    mask("a mask of a gigapixel", 413, "too_many_pixels", png_of(100_000, 10_000)),
]
LANDMARKS = [
    points("NaN", five("[NaN, 101]")),
    points("infinity", five("[203, -Infinity]")),
    points("1e400", five("[1e400, 101]")),
    points("a whole number of 400 digits", five(f"[1{'0' * 400}, 101]")),
    points("null", five("[null, 101]")),
    points("a word", five('["left", 101]')),
    points("an object", five('{"x": 203, "y": 101}')),
    points("three coordinates", json.dumps({"front": [[1, 2, 3]] * 68})),
    points("67 points", json.dumps({"front": [[k, k] for k in range(67)]})),
    points("no points", '{"front": []}'),
    points("a number", '{"front": 5}'),
    points("a ragged list", five("[203]")),
    points("beside the picture", json.dumps({"front": [[x + 1e5, y] for x, y in POINTS]})),
    points("lists 5,000 deep in a view", f'{{"front": {"[" * 5000}{"]" * 5000}}}', "landmarks"),
    points("lists 400 deep in a view", f'{{"front": {"[" * 400}{"]" * 400}}}'),
    points("lists 90,000 deep", "[" * 90_000, "landmarks"),
    points("objects 5,000 deep", '{"front":' * 5000 + "1" + "}" * 5000, "landmarks"),
    points("a whole number of 5,000 digits", five(f"[1{'0' * 5000}, 101]"), "landmarks"),
    points("a list", json.dumps(POINTS), "landmarks"),
    points("null instead of an object", "null", "landmarks"),
    points("no JSON", "front: 1", "landmarks"),
    points("half of it", five("[203, 101]")[:-5], "landmarks"),
    points("nothing", "", "landmarks"),
    points("a view that was not sent", json.dumps({"left": POINTS}), "landmarks"),
    points("a view that does not exist", json.dumps({"back": POINTS}), "landmarks"),
    points("half a character", '{"\\ud800": []}', "landmarks"),
    Bad("binary", 422, "landmarks", "bad_landmarks", {"front": PHOTO, "landmarks": b"\xff\x00\xfe"}),
    points("one place", json.dumps({"front": [[100, 100]] * 5}), "front", "unusable_view"),
    points(
        "a mirrored face", json.dumps({"front": [[300 - x, y] for x, y in POINTS]}), "front", "unusable_view"
    ),
    points(
        "enormous",
        json.dumps({"front": [[-1e200, 0], [1e200, 0], [0, 1], [-1e200, 2], [1e200, 2]]}),
        "front",
        "unusable_view",
    ),
]
BATCHES = [
    Bad("a name without an index", 422, "front", "unknown_field", {"front": CROP}, path=MANY),
    Bad("a negative index", 422, "-1.front", "unknown_field", {"-1.front": CROP}, path=MANY),
    Bad("an index of six digits", 422, "123456.front", "unknown_field", {"123456.front": CROP}, path=MANY),
    Bad("a gap", 422, "", "bad_index", {"0.front": CROP, "2.front": CROP}, path=MANY),
    Bad(
        "an index with a zero before it",
        422,
        "00.front",
        "unknown_field",
        {"0.front": CROP, "00.front": CROP},
        path=MANY,
    ),
    Bad("an index in Arabic digits", 422, "\u0660.front", "unknown_field", {"\u0660.front": CROP}, path=MANY),
    Bad("17 faces", 413, "", "too_many_faces", {f"{k}.front": CROP for k in range(17)}, path=MANY),
    raw("no face", 422, "0.front", "missing_front_view", END, path=MANY),
    raw(
        "a batch of JSON",
        415,
        "Content-Type",
        "not_multipart",
        b"[]",
        headers={"content-type": "application/json"},
        path=MANY,
    ),
]
OPTIONS = [
    *(
        Bad(
            f"refine={value or 'nothing'} at {path}",
            422,
            "refine",
            "bad_parameter",
            files,
            path=f"{path}?refine={value}",
        )
        for path, files in ((ONE, {"front": CROP}), (MANY, {"0.front": CROP}), (AVATARS, {"front": CROP}))
        for value in ("maybe", "", "2")
    ),
    Bad("a head by GET", 405, "", "method_not_allowed", path=AVATARS, method="GET"),
    Bad(
        "a head as JSON",
        406,
        "Accept",
        "not_acceptable",
        {"front": CROP},
        path=AVATARS,
        headers={"accept": "application/json"},
    ),
    Bad(
        "a head under an empty key",
        422,
        "Idempotency-Key",
        "bad_idempotency_key",
        {"front": CROP},
        path=AVATARS,
        headers={"idempotency-key": ""},
    ),
    *(
        replace(bad, name=f"a head from {bad.name}", path=AVATARS)
        for bad in (*BODIES[::4], *FIELDS, *PICTURES[::6])
    ),
    *(replace(bad, name=f"a head at {bad.name}", path=AVATARS) for bad in LANDMARKS[-3:]),
]
ALL = [*ROUTES, *BODIES, *FIELDS, *PICTURES, *LANDMARKS, *BATCHES, *OPTIONS]


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.name)
def test_a_bad_request_is_told_why(bad: Bad, client: TestClient) -> None:
    detail = problem(bad.send(client), bad.status, bad.field, bad.reason)
    assert len(detail) < 1000


def test_a_good_request_is_answered_after_all_bad_ones(client: TestClient) -> None:
    good = Bad("good", 200, "", "", {"front": CROP, "front_mask": labels(9)})
    for bad in ALL[::5]:
        bad.send(client)
    response = good.send(client)
    assert response.status_code == 200, response.text
    assert "dfmvr_requests_under_way 0.0" in client.get("/metrics").text.splitlines()


def test_the_name_and_the_announced_type_of_a_picture_do_not_count(client: TestClient) -> None:
    files = {"front": ("../../../etc/passwd\r\n.exe", CROP, "text/html")}
    assert client.post(ONE, files=files).status_code == 200


def test_a_picture_with_something_behind_it_is_a_picture(client: TestClient) -> None:
    files = {"front": jpeg(NOISE) + zip_of("x.txt", b"x")}
    assert client.post(ONE, files=files).status_code == 200


def test_misspelt_names_are_answered_with_the_near_one(client: TestClient) -> None:
    detail = problem(client.post(ONE, files={"fromt": CROP}), 422)
    assert "did you mean 'front'?" in detail


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes near the start of a file, drop some, put some in, or cut it off."""
    bad = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(bad), rng.choice((40, 300, len(bad)))))
        match rng.choice("bbbwwdci"):
            case "b":
                bad[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case "w":
                bad[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 65535, 2**31 - 1, 2**32 - 1)))
            case "d" if len(bad) > 60:
                del bad[at : at + rng.randint(1, 20)]
            case "c":
                del bad[max(60, at) :]
            case "i":
                bad[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(bad)


@pytest.mark.parametrize("field", ["front", "front_mask"])
def test_damaged_pictures_are_refused_or_read_but_never_break_the_server(field: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0100] = 6, "someone's camera", 5
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(("JPEG", {"exif": exif}), ("JPEG", {"progressive": True}), ("PNG", {"exif": exif})),
        *(("WEBP", {"exif": exif}), ("TIFF", {}), ("BMP", {})),
    ]
    pictures = [picture_file(NOISE[..., :1].squeeze(-1), kind, **options) for kind, options in kinds]
    rng, settings, outcomes = random.Random(1), ServeSettings(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about EXIF data
        for _ in range(1000):
            form = {"front": CROP} | {field: damaged(rng.choice(pictures), rng)}
            try:
                read_photos(form, settings)
            except Problem as refused:
                outcomes.add(refused.status)
            else:
                outcomes.add(200)
    assert {415, 422} <= outcomes <= {200, 413, 415, 422}


def send_slowly(engine: Engine, body: AsyncIterator[bytes], **limits: float) -> Any:
    """Post a body that comes bit by bit."""

    async def post() -> Any:
        settings = ServeSettings(keys="none", **limits)  # type: ignore[arg-type]
        async with asking(endpoint_of(settings, engine)) as client:
            return await client.post(ONE, content=body, headers=FORM)

    return asyncio.run(post())


async def drip(pause_s: float, n_bytes: int = 1) -> AsyncIterator[bytes]:
    yield part("front", CROP)[:200]
    for _ in range(1000):
        await asyncio.sleep(pause_s)
        yield b"x" * n_bytes


@pytest.mark.parametrize("pause_s", [0.01, 60.0], ids=["a byte at a time", "a pause"])
def test_a_slow_body_is_not_waited_for(pause_s: float, engine: Engine) -> None:
    response = send_slowly(engine, drip(pause_s), body_timeout_s=0.2)
    assert "expected the body within 0.2 s, got" in problem(response, 408, "", "slow_body")
    assert response.headers["connection"] == "close"


def test_a_body_without_a_length_is_counted_while_it_comes(engine: Engine) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        async for piece in drip(0.0, 100_000):
            taken += len(piece)
            yield piece

    response = send_slowly(engine, endless(), max_body_mb=1.0)
    assert "at most 1,000,000 bytes" in problem(response, 413, "", "body_too_large")
    assert taken < 1_300_000  # the rest was never asked for
    assert response.headers["connection"] == "close"


def test_a_client_that_hangs_up_is_counted_and_not_logged_as_a_mistake(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = endpoint_of(ServeSettings(keys="none"), engine)
    app = build_api(endpoint, None)[1]
    messages = [{"type": "http.request", "body": part("front", CROP)[:200], "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", FORM["content-type"].encode())]
    scope = {"type": "http", "method": "POST", "path": ONE, "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 400
    assert not caplog.records
    assert b'dfmvr_rejects_total{reason="bad_multipart"} 1.0' in exposition(endpoint.telemetry.snapshot())
