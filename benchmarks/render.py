"""How long does a differentiable picture of a 70,688-triangle face take, forward and backward, at 224 x 224?

    python -m benchmarks.render [--images 12] [--rounds 7] [--scaling docs/results/performance_render.png]

`--scaling` measures instead how the time of the numba and torch backends grows with triangles, pixels and
batch, one at a time, and draws it. Otherwise the sides, timed in turn on the same meshes with as many
threads, are:
- `numba`, `torch`: the z-buffer's backends, a batch of `--images`, gradients of attributes and vertices;
- `naive`: a compiled plain loop over pixels and triangles, forward only, on some rows, scaled to all;
- `pytorch3d`: its CPU rasteriser through our adapter, one image, where the package is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import add_timing, ratio, report, start_timing, time_in_turn
from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.render.base import Renderer
from dfmvr.render.zbuffer import ZBufferRenderer

SIZE = 224
CHANNELS = 3
NAIVE_ROWS = range(4, SIZE, 56)


def face_like_mesh(n: int = 189) -> tuple[Tensor, Tensor]:
    """Return a head-sized, open sheet with a nose and sockets: n * n vertices in mm, model space."""
    grid = torch.linspace(-1, 1, n)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    x, y = u * (1 - v * v / 2).sqrt(), v * (1 - u * u / 2).sqrt()
    radius = (x * x + y * y).sqrt().clamp_min(1e-8)
    polar = radius * math.radians(100)
    direction = torch.stack((polar.sin() * x / radius, polar.sin() * y / radius, polar.cos()), -1)
    nose = 0.25 * torch.exp(-((x / 0.12) ** 2 + ((y + 0.05) / 0.2) ** 2))
    sockets = 0.06 * torch.exp(-(((x.abs() - 0.3) / 0.12) ** 2 + ((y - 0.25) / 0.08) ** 2))
    roughness = 0.0015 * torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    points = direction * torch.tensor([80.0, 105.0, 85.0]) * (1 + nose - sockets + roughness).unsqueeze(-1)
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.stack((torch.stack((a, b, c), -1), torch.stack((b, d, c), -1)), 2).reshape(-1, 3)
    return points.reshape(-1, 3), triangles


@numba.njit(nogil=True, error_model="numpy")
def _naive_row(screen: np.ndarray, triangles: np.ndarray, y: int, size: int) -> int:  # pragma: no cover
    """Test every triangle at every pixel of a row, as a textbook would; return how many pixels are hit."""
    hits = 0
    qy = np.float32(y + 0.5)
    for x in range(size):
        qx = np.float32(x + 0.5)
        nearest = np.float32(np.inf)
        for f in range(triangles.shape[0]):
            i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            ax, ay, bx, by = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1]
            cx, cy = screen[k, 0], screen[k, 1]
            u = (cx - bx) * (qy - by) - (cy - by) * (qx - bx)
            v = (ax - cx) * (qy - cy) - (ay - cy) * (qx - cx)
            w = (bx - ax) * (qy - ay) - (by - ay) * (qx - ax)
            if (u >= 0 and v >= 0 and w >= 0) or (u <= 0 and v <= 0 and w <= 0):
                total = u + v + w
                if total != 0:
                    depth = total / (u / screen[i, 2] + v / screen[j, 2] + w / screen[k, 2])
                    nearest = min(nearest, depth)
        hits += nearest < np.inf
    return hits


def naive_loop(vertices: Tensor, triangles: Tensor, intrinsics: Tensor) -> Callable[[], object]:
    """Return a run over NAIVE_ROWS of one image, on as many threads as the renderer has."""
    from dfmvr.render.zbuffer_numba import _for_each_image

    over_z = vertices[:, 2:].reciprocal()
    pixels = (vertices * over_z) @ intrinsics.T
    screen = torch.cat((pixels[:, :2], vertices[:, 2:]), -1).contiguous().numpy()
    corners = triangles.int().numpy()
    rows = list(NAIVE_ROWS)
    return lambda: _for_each_image(len(rows), lambda row: _naive_row(screen, corners, rows[row], SIZE))


def forward_and_backward(
    renderer: Renderer, vertices: Tensor, triangles: Tensor, size: int = SIZE
) -> Callable[[], object]:
    """Return a run that renders and sends a fixed gradient back to vertices and attributes."""
    generator = torch.Generator().manual_seed(1)
    attributes = torch.rand(*vertices.shape[:2], CHANNELS, generator=generator, requires_grad=True)
    gradient = torch.randn(len(vertices), size, size, CHANNELS, generator=generator)
    intrinsics = default_intrinsics(size)
    leaf = vertices.clone().requires_grad_()

    def run() -> None:
        leaf.grad = attributes.grad = None
        renderer(leaf, triangles, attributes, intrinsics, size).attributes.backward(gradient)

    return run


def posed_faces(count: int, n: int = 189) -> tuple[Tensor, Tensor]:
    """Return faces from the left, the front and the right in turn: vertices in camera space, triangles."""
    points, triangles = face_like_mesh(n)
    yaws = torch.tensor((-0.7, 0.0, 0.7)).repeat(math.ceil(count / 3))[:count]
    angles = torch.stack((torch.full_like(yaws, 0.05), yaws, torch.zeros_like(yaws)), -1)
    return to_camera(points, euler_to_matrix(angles), torch.zeros(count, 3)), triangles


@dataclass(frozen=True)
class Case:
    """One rendering whose time is a point of the plot."""

    n: int = 189
    size: int = SIZE
    images: int = 12

    @property
    def triangles(self) -> int:
        """Triangles of the mesh."""
        return 2 * (self.n - 1) ** 2


SWEEPS = {
    "triangles": [Case(n=n) for n in (34, 68, 95, 134, 189, 267)],
    "pixels a side": [Case(size=size) for size in (56, 112, 224, 448)],
    "images a batch": [Case(images=images) for images in (1, 3, 12, 48)],
}
"""What is varied, by the axis' name; the rest is as in the main benchmark."""
BACKENDS = ("numba", "torch")


def measure_scaling(path: Path, rounds: int, clock: Callable[[], float]) -> None:
    """Time every case of SWEEPS, draw them into a picture and report."""
    times: dict[Case, dict[str, float]] = {}
    for case in dict.fromkeys(case for cases in SWEEPS.values() for case in cases):
        vertices, triangles = posed_faces(case.images, case.n)
        sides = {
            name: forward_and_backward(ZBufferRenderer(name), vertices, triangles, case.size)
            for name in BACKENDS
        }
        runs = time_in_turn(sides, rounds, warm_up=1, clock=clock)
        times[case] = {name: statistics.median(runs[name]) / case.images for name in BACKENDS}
    draw_scaling(path, times)
    metrics = {
        f"{name}_ms_{case.triangles}_triangles_{case.size}px_batch_{case.images}": round(value, 3)
        for case, values in times.items()
        for name, value in values.items()
    }
    report("render", metrics, clock=clock.__name__)


def draw_scaling(path: Path, times: Mapping[Case, Mapping[str, float]]) -> None:
    """Draw milliseconds an image, one panel for each of SWEEPS."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    for axes, (title, cases) in zip(panels, SWEEPS.items(), strict=True):
        values = [{"triangles": c.triangles, "pixels a side": c.size}.get(title, c.images) for c in cases]
        for name, marker in zip(BACKENDS, "os", strict=True):
            axes.plot(values, [times[case][name] for case in cases], marker=marker, label=name)
        axes.set(xscale="log", yscale="log", xlabel=title)
        ticks = values[:: 1 if len(values) < 6 else 2]
        axes.set_xticks(ticks, [f"{value:,}" for value in ticks])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms an image, forward + backward")
    panels[0].set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    for axes in panels:
        axes.minorticks_off()
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Time the sides and print the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12, help="batch of the z-buffer sides (%(default)d)")
    parser.add_argument("--scaling", type=Path, metavar="PICTURE", help="measure scaling and draw it here")
    add_timing(parser, rounds=7)
    settings = parser.parse_args()
    clock = start_timing(settings)
    if settings.scaling:
        measure_scaling(settings.scaling, settings.rounds, clock)
        return
    vertices, triangles = posed_faces(settings.images)
    sides = {
        "numba": forward_and_backward(ZBufferRenderer("numba"), vertices, triangles),
        "torch": forward_and_backward(ZBufferRenderer("torch"), vertices, triangles),
        "naive": naive_loop(vertices[0], triangles, default_intrinsics(SIZE)),
    }
    images = {"numba": settings.images, "torch": settings.images, "naive": len(NAIVE_ROWS) / SIZE}
    if importlib.util.find_spec("pytorch3d"):
        from dfmvr.render.pytorch3d import PyTorch3DRenderer

        sides["pytorch3d"] = forward_and_backward(PyTorch3DRenderer(), vertices[:1], triangles)
        images["pytorch3d"] = 1
    times = time_in_turn(sides, settings.rounds, warm_up=1, clock=clock)
    per_image = {name: [time / images[name] for time in runs] for name, runs in times.items()}
    metrics = {
        "ms_per_image": statistics.median(per_image["numba"]),
        "ms_per_image_min": min(per_image["numba"]),
    }
    metrics["ms_per_image_torch"] = statistics.median(per_image["torch"])
    for name in ("naive", "pytorch3d"):
        if name in per_image:
            metrics[f"ratio_vs_{name}"] = ratio(per_image[name], per_image["numba"])
    report(
        "render",
        {name: round(value, 3) for name, value in metrics.items()},
        triangles=len(triangles),
        vertices=vertices.shape[1],
        image_size=SIZE,
        batch=settings.images,
        naive=f"forward only, {len(NAIVE_ROWS)} of {SIZE} rows, scaled to all",
        clock=clock.__name__,
    )


if __name__ == "__main__":
    main()
