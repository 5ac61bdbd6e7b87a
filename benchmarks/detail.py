"""Is found detail true? python -m benchmarks.detail [--heads 6] [--people 12] [--pictures FILE]

Heads with wrinkles that are known: valleys 4 to 10 mm wide and 0.3 to 0.8 mm deep, pressed into the geometry
of a head with the face model's shape, which is drawn at 512 px, with noise, in a random light: three views,
the front view alone, and three views of an albedo with blotches that nobody is told of. The relief found is
compared with the true one, freed of what is wide as all detail is, where the pictures show plain skin:
correlation, root mean square of the difference and, for comparison, of the true relief (no detail at all).

New synthetic people with scans, reconstructed from three pictures of 512 px: distances from scan to surface
with and without detail. The scans hold no wrinkles: there is nothing to gain here, only to lose.

With --pictures: a photograph (NASA, public domain, from scikit-image) and a wrinkled head, without and with
detail.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.inputs import SEED
from dfmvr.avatar.build import Avatar, image_at, pose_head, pose_vertices
from dfmvr.avatar.detail import DETAIL_SIZE, WIDE, blur, find_detail, plain_skin
from dfmvr.avatar.fine import displaced
from dfmvr.avatar.head import Head, load_head
from dfmvr.avatar.shots import SHOT_SIZE, Shot, take_shots
from dfmvr.avatar.sight import look
from dfmvr.avatar.texels import TONE_REGIONS, Texels, find_texels, in_regions
from dfmvr.avatar.turntable import draw_avatar
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.preprocess.landmark import build_finder
from dfmvr.evaluation.distance import Surface
from dfmvr.evaluation.evaluator import Coefficients, Evaluator
from dfmvr.evaluation.protocol import Face, measure
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.files import write_atomic
from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import linear_to_srgb, sh_basis
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Photo, Predictor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams, Reconstruction

Array = NDArray[Any]

PICTURE_SIZE = 512
YAWS = (-0.7, 0.0, 0.7)
"""Of three views, in radians."""
CASES = {"": (YAWS, 0.0), "front_view_": ((0.0,), 0.0), "blotches_": (YAWS, 0.02)}
"""Prefix of the figures' names -> the views' yaw, and the unknown part of the albedo's logarithm."""
N_WRINKLES = 60
FACE_SIDE = 345.0
"""In mm: how far the texture's side reaches at the face's scale."""
NOISE = 1.5
"""Of the pictures, in steps of 255."""
GREY = np.full((8, 8, 3), 175, np.uint8)
RAKING = ((0.55,) * 3, (0.22,) * 3, (0.3,) * 3, (-0.4,) * 3)
"""Light from the upper left, which shows a relief."""
TILE = 400
TURN = 0.5
"""In radians."""
BYSTANDERS = 0.5
FRAME = 0.634
"""Share of a drawn head's side that is as wide as a photograph's crop."""


@dataclass(frozen=True, eq=False)
class Wrinkled:
    """A head whose relief is known."""

    identity: torch.Tensor
    relief: Array
    """[R, R] mm."""
    vertices: torch.Tensor
    albedo: torch.Tensor
    shape: Avatar
    """The relief as shape, half a millimetre to a millimetre from vertex to vertex."""
    light: torch.Tensor


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", type=int, default=6, help="number of heads with wrinkles")
    parser.add_argument("--people", type=int, default=12, help="number of people with scans")
    parser.add_argument("--seed", type=int, default=SEED, help="whom to draw; tune with another one")
    parser.add_argument("--pictures", type=Path, help="draw this file as well")
    options = parser.parse_args()
    head = load_head()
    metrics = wrinkles(head, options.heads, options.seed) if options.heads else {}
    if options.people:
        metrics |= scans(head, options.people, options.seed)
    if options.pictures:
        draw(head, options.seed, options.pictures)
    report("detail", metrics, heads=options.heads, people=options.people)


def wrinkles(head: Head, count: int, seed: int) -> dict[str, float]:
    """Return how near found reliefs come to true ones."""
    texels = find_texels(head, DETAIL_SIZE)
    figures: dict[str, list[float]] = {}
    seconds = []
    for number in range(count):
        person = wrinkled_head(head, texels, seed + number)
        detail = person.relief - blur(person.relief, np.ones_like(person.relief), WIDE)
        for prefix, (yaws, blotches) in CASES.items():
            shots = photographs(person, texels, yaws, blotches, seed + number)
            start = time.perf_counter()
            found = find_detail(head, person.vertices, person.albedo, shots)
            seconds.append(time.perf_counter() - start)
            where = shown(head, texels, person, shots)
            truth, error = detail[where], (found - detail)[where]
            for name, value in {
                "correlation": np.corrcoef(found[where], truth)[0, 1],
                "rmse_mm": np.sqrt(np.square(error).mean()),
                "without_rmse_mm": np.sqrt(np.square(truth).mean()),
            }.items():
                figures.setdefault(f"{prefix}{name}", []).append(float(value))
    return {name: statistics.mean(values) for name, values in figures.items()} | {
        "seconds": statistics.median(seconds)
    }


def shown(head: Head, texels: Texels, person: Wrinkled, shots: list[Shot]) -> NDArray[np.bool_]:
    """Say which texels of plain skin a picture shows."""
    albedo = texels.spread(person.albedo)
    trust = [look(shot, head, texels, person.vertices, albedo).trust for shot in shots]
    return in_regions(texels, TONE_REGIONS) & (plain_skin(texels, albedo) * np.max(trust, 0) > 0.3)


def wrinkled_head(head: Head, texels: Texels, seed: int) -> Wrinkled:
    """Make a person with wrinkles."""
    rng, random = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    identity = torch.randn(len(head.model.identity_basis), generator=random)
    albedo = head.model.albedo(torch.randn(len(head.model.albedo_basis), generator=random))
    vertices = head.model.vertices(identity, torch.zeros(len(head.model.expression_basis)))
    relief = wrinkle_relief(texels, rng)
    light = torch.zeros(9, 3)
    light[0], light[1], light[2] = 0.75, 0.15, 0.3
    light[3] = 0.3 * float(rng.choice([-1.0, 1.0]))
    light += 0.04 * torch.randn(9, 1, generator=random)
    plain = pose_head(head, identity, GREY, np.zeros_like(relief))
    shape = displaced(dataclasses.replace(displaced(plain), relief=relief))
    return Wrinkled(identity, relief, vertices, albedo, shape, light)


def photographs(
    person: Wrinkled, texels: Texels, yaws: tuple[float, ...], blotches: float, seed: int
) -> list[Shot]:
    """Draw a person from some sides, with blotches on the skin of a standard deviation."""
    rng = np.random.default_rng(seed)
    tint = cv2.GaussianBlur(rng.normal(size=person.relief.shape).astype(np.float32), (0, 0), 3)
    painted = texels.spread(person.albedo) * np.exp(blotches * tint / tint.std())[..., None]
    return [_photograph(person.shape, painted, person.light, yaw, rng) for yaw in yaws]


def wrinkle_relief(texels: Texels, rng: np.random.Generator) -> Array:
    """Return valleys [R, R] mm on the face's skin; each is as deep as it likes where they cross."""
    size = len(texels.covered)
    rows, columns = np.mgrid[:size, :size] * (FACE_SIDE / size)
    places = np.argwhere(in_regions(texels, TONE_REGIONS))
    relief = np.zeros((size, size))
    for _ in range(N_WRINKLES):
        row, column = places[rng.integers(len(places))] * (FACE_SIDE / size)
        turn, half_length = rng.uniform(0, np.pi), rng.uniform(5, 15)
        along = np.cos(turn) * (columns - column) + np.sin(turn) * (rows - row)
        across = np.cos(turn) * (rows - row) - np.sin(turn) * (columns - column)
        half_width, depth = rng.uniform(1.0, 2.5), rng.uniform(0.3, 0.8)
        valley = -depth * np.exp(-((along / half_length) ** 2) - 0.5 * (across / half_width) ** 2)
        relief = np.minimum(relief, valley)
    skin = cv2.GaussianBlur(in_regions(texels, TONE_REGIONS).astype(np.float32), (0, 0), 2)
    return np.asarray(relief * skin, np.float32)


def _photograph(
    head: Avatar, albedo: Array, light: torch.Tensor, yaw: float, rng: np.random.Generator
) -> Shot:
    """Draw a head of fine geometry in a texture, and enlarge the picture as photographs are."""
    rotation, translation = euler_to_matrix(torch.tensor([0.05, yaw, 0.02])), torch.tensor([3.0, -2.0, 10.0])
    camera = to_camera(torch.from_numpy(head.vertices), rotation, translation)
    normals = torch.from_numpy(head.normals) @ rotation.T
    triangles = torch.from_numpy(np.concatenate(list(head.parts.values())))
    attributes = torch.cat([torch.from_numpy(head.uvs), normals], 1)
    intrinsics = default_intrinsics(PICTURE_SIZE)
    drawn = ZBufferRenderer()(camera, triangles, attributes, intrinsics, PICTURE_SIZE)
    seen = drawn.attributes[drawn.mask]
    colour = torch.from_numpy(image_at(albedo, seen[:, :2].numpy()))
    radiance = torch.zeros(PICTURE_SIZE, PICTURE_SIZE, 3)
    normal = torch.nn.functional.normalize(seen[:, 2:], dim=-1)
    radiance[drawn.mask] = colour * (sh_basis(normal) @ light)
    picture = linear_to_srgb(radiance.clamp(0, 1)).numpy() * 255 + rng.normal(0, NOISE, radiance.shape)
    large = cv2.resize(picture.clip(0, 255), (SHOT_SIZE, SHOT_SIZE), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(drawn.mask.numpy().astype(np.uint8), (SHOT_SIZE, SHOT_SIZE)) > 0
    image = np.round(large.clip(0, 255)).astype(np.uint8)
    return Shot(image, mask, default_intrinsics(SHOT_SIZE), rotation, translation, light)


def scans(head: Head, count: int, seed: int) -> dict[str, float]:
    """Return distances from scans to reconstructions with and without detail."""
    predictor = Predictor.load()
    evaluator = Evaluator(predictor.face_model, MorphableModel.load(level=1), EvaluationSettings())
    settings = SyntheticSettings(n_subjects=count, split_shares=(0.0, 0.0, 1.0), image_size=PICTURE_SIZE)
    errors = []
    for person in range(count):
        sample = render_sample(settings, seed, person, person % settings.expressions_per_subject)
        photos = {
            name: Photo(sample.images[v], sample.landmarks_2d[v]) for v, name in enumerate(sample.view_names)
        }
        views = predictor.prepare(photos)
        face = predictor.reconstruct(views)
        shots = take_shots(photos, views, face)
        params = face.params
        vertices = head.model.vertices(params.identity, params.expression)
        relief = find_detail(head, vertices, head.model.albedo(params.albedo), shots)
        truth = evaluator.truth(sample)
        errors.append(
            [
                measure(_face(head, face, some, evaluator), truth, evaluator.settings).values["rmse"]
                for some in (np.zeros_like(relief), relief)
            ]
        )
    without, with_detail = np.array(errors).T
    return {
        "scan_rmse_mm": float(with_detail.mean()),
        "scan_without_rmse_mm": float(without.mean()),
        "scan_worst_harm_mm": float((with_detail - without).max()),
    }


def _face(head: Head, face: Reconstruction, relief: Array, evaluator: Evaluator) -> Face:
    """Return a reconstruction's face with a relief, ready to be measured."""
    params = face.params
    plain = evaluator.face(Coefficients(params.identity.numpy(), params.expression.numpy()))
    shape = displaced(expressive(head, params, relief))
    triangles = np.concatenate(list(shape.parts.values()))
    surface = Surface(shape.vertices.astype(np.float64), triangles, evaluator.settings.distance_backend)
    return dataclasses.replace(plain, surface=surface)


def expressive(head: Head, params: FaceParams, relief: Array) -> Avatar:
    """Return a grey head with a relief and the expression that was seen."""
    vertices = head.model.vertices(params.identity, params.expression)
    return pose_vertices(head, vertices, GREY, relief)


def draw(head: Head, seed: int, path: Path) -> None:
    """Draw the two rows of pictures."""
    picture = np.concatenate([np.concatenate(row, 1) for row in (real_row(head), wrinkled_row(head, seed))])
    write_atomic(path, cv2.imencode(path.suffix, picture[..., ::-1])[1].tobytes())
    print(path)


def real_row(head: Head) -> list[Array]:
    """Draw a photograph, the smooth shape, that with detail, and the same turned."""
    from skimage.data import astronaut

    predictor = Predictor.load()
    photos = predictor.locate({"front": Photo(astronaut())}, build_finder("dlib", BYSTANDERS))
    views = predictor.prepare(photos)
    face = predictor.refine(views)
    shots = take_shots(photos, views, face)
    vertices = head.model.vertices(face.params.identity, face.params.expression)
    relief = find_detail(head, vertices, head.model.albedo(face.params.albedo), shots)
    smooth, detailed = (expressive(head, face.params, some) for some in (0 * relief, relief))
    return [photographed(shots[0].image), clay(smooth), clay(detailed), clay(detailed, TURN)]


def wrinkled_row(head: Head, seed: int) -> list[Array]:
    """Draw the front picture of a wrinkled head, the smooth shape, the one found, and the true one."""
    texels = find_texels(head, DETAIL_SIZE)
    person = wrinkled_head(head, texels, seed)
    shots = photographs(person, texels, YAWS, 0.0, seed)
    found = find_detail(head, person.vertices, person.albedo, shots)
    shapes = [pose_head(head, person.identity, GREY, some) for some in (0 * found, found, person.relief)]
    return [photographed(shots[YAWS.index(0.0)].image), *map(clay, shapes)]


def photographed(image: Array) -> Array:
    """Return a photograph's crop as a tile."""
    return cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)


def clay(avatar: Avatar, yaw: float = 0.0) -> Array:
    """Draw a head in raking light as a tile, about as large as in a photograph's crop."""
    side = round(TILE / FRAME)
    start = (side - TILE) // 2
    return draw_avatar(avatar, yaw, {}, side, RAKING)[start : start + TILE, start : start + TILE]


if __name__ == "__main__":
    main()
