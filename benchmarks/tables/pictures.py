"""Pictures of the tables: the variants side by side on the same faces, and every system on one face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.tables.measuring import Bench, coefficients, faces_of_test
from benchmarks.tables.results import Runs
from benchmarks.tables.systems import ALL, SYSTEMS, VARIANTS, System
from dfmvr.config import Settings
from dfmvr.data.sample import Sample
from dfmvr.evaluation.pictures import Picture, draw_turntable, enlarge, error_colours, overlay
from dfmvr.files import write_atomic
from dfmvr.predictor import Predictor
from dfmvr.reconstructor import Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams

SIDE = 168
"""Pixels a tile."""
TOP_MM = 5.0
"""Error at the end of the colour scale."""
GROUND = 246
"""Grey behind the faces."""
LABEL_HEIGHT = 26
N_FACES = 4
TURN = (25.0,)
"""Degrees of yaw of the drawn surfaces."""


def draw_variants(runs: Runs, settings: Settings, path: Path) -> None:
    """Write a picture of v1 to v6 on the same faces: the surface above, its error below."""
    systems = [system for system in SYSTEMS if system.name in VARIANTS and runs.trained_seeds(system)]
    bench, faces = Bench(settings), faces_of_test(settings)
    chosen = [faces[k] for k in np.linspace(0, len(faces) - 1, N_FACES).astype(int)]
    head = ["picture", "truth", *(system.name for system in systems)]
    rows = [_labels(head)]
    for face in chosen:
        sample = bench.sample(face, ALL)
        tiles = [_photo(sample, view=1), _clay(sample.scan_vertices, sample.scan_triangles)]
        below = [_photo(sample, view=0), np.full((SIDE, SIDE, 3), 255, np.uint8)]
        for system in systems:
            params = _predict(bench, runs, system, sample)
            shape, error = _surface_and_error(bench, face, sample, params)
            tiles.append(shape)
            below.append(error)
        rows += [np.concatenate(tiles, 1), np.concatenate(below, 1)]
    _write(path, rows, len(head))


def draw_faces(runs: Runs, settings: Settings, path: Path) -> None:
    """Write a picture of every system on one face: laid over the three views, its surface, its error."""
    systems = [system for system in SYSTEMS if runs.trained_seeds(system)]
    bench, faces = Bench(settings), faces_of_test(settings)
    face = faces[len(faces) // 2]
    sample = bench.sample(face, ALL)
    photos = [_photo(sample, view) for view in range(3)]
    truth = _clay(sample.scan_vertices, sample.scan_triangles)
    heads = [*sample.view_names, "surface", "error"]
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rows = [_labels(heads), np.concatenate([*photos, truth, blank], 1)]
    for system in systems:
        params = _predict(bench, runs, system, sample)
        tiles = [*_overlays(bench, sample, params), *_surface_and_error(bench, face, sample, params)]
        rows += [_labels([""] * len(heads), system.title), np.concatenate(tiles, 1)]
    _write(path, rows, len(heads))


def _predict(bench: Bench, runs: Runs, system: System, sample: Sample) -> FaceParams:
    folder = runs.model(system, runs.trained_seeds(system)[0])
    return bench.predict(Predictor.load(folder, bench.settings.face_model.path or None), sample, ALL)


def _photo(sample: Sample, view: int) -> Picture:
    return enlarge(sample.images[view], SIDE)


def _clay(vertices: object, triangles: object, colours: object = None) -> Picture:
    shape = np.asarray(vertices, dtype=np.float64)
    drawn = draw_turntable(
        shape,
        np.asarray(triangles),
        TURN,
        centre=(shape.min(0) + shape.max(0)) / 2,
        colours=None if colours is None else np.asarray(colours),
        size=SIDE,
        relief=1.0 if colours is None else 0.45,
    )
    alpha = drawn[..., 3:].astype(np.float64) / 255
    return np.asarray((drawn[..., :3] * alpha + GROUND * (1 - alpha)).round(), dtype=np.uint8)


def _surface_and_error(
    bench: Bench, face: tuple[int, int], sample: Sample, params: FaceParams
) -> tuple[Picture, Picture]:
    """Return the surface in the scan's frame, and the scan coloured by its distance, with the RMSE."""
    truth, measured = bench.truth(face), bench.measure(face, params)
    vertices = measured.transform.apply(bench.evaluator.vertices(coefficients(params)))
    surface = _clay(vertices, bench.evaluator.model.triangles.numpy())
    assert sample.scan_vertices is not None
    colours = error_colours(measured.distances, truth.vertex_ids, len(sample.scan_vertices), TOP_MM)
    error = _clay(sample.scan_vertices, sample.scan_triangles, colours)
    return surface, _text(error, f"{measured.values['rmse']:.2f} mm", (6, SIDE - 8))


def _overlays(bench: Bench, sample: Sample, params: FaceParams) -> list[Picture]:
    scale = SIDE / sample.images.shape[1]
    zoom = torch.diag(torch.tensor([scale, scale, 1.0]))
    intrinsics = (zoom @ torch.as_tensor(sample.intrinsics, dtype=torch.float32)).unsqueeze(0)
    with torch.no_grad():
        drawn = Reconstructor(nn.Identity(), bench.evaluator.model, ZBufferRenderer()).draw(
            params, intrinsics, SIDE
        )
    return [
        overlay(_photo(sample, view), drawn.image[0, view].numpy(), drawn.mask[0, view].numpy())
        for view in range(len(sample.view_names))
    ]


def _labels(names: Sequence[str], title: str = "") -> Picture:
    """Return a strip with a name above each tile, or one title over all."""
    strip = np.full((LABEL_HEIGHT, SIDE * len(names), 3), 255, np.uint8)
    for k, name in enumerate([title] if title else names):
        strip = _text(strip, name, (k * SIDE + 6, LABEL_HEIGHT - 8))
    return strip


def _text(picture: Picture, text: str, place: tuple[int, int]) -> Picture:
    copy = np.ascontiguousarray(picture)
    cv2.putText(copy, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return copy


def _write(path: Path, rows: Sequence[Picture], columns: int) -> None:
    picture = np.concatenate([row[:, : columns * SIDE] for row in rows], 0)
    code = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    write_atomic(path, code.tobytes())
