"""The default renderer: a z-buffer with a hand-written gradient, numba on the CPU and torch on CUDA.

Both backends cast a ray d = ((x - cx) / fx, (y - cy) / fy, 1) through a pixel's centre and shear space along
z so that d becomes the optical axis. With a', b', c' the sheared corners' x and y, the edge functions

    u = (b' x c', c' x a', a' x b'),     weights = u / sum(u),     depth = weights . (a_z, b_z, c_z)

give visibility and perspective-correct weights at once, without a division by z, and shared edges are
watertight since swapping two corners flips the sign exactly. Both evaluate the same operations in the same
order; torch compares depths as float32 also where vertices are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfmvr.render.base import flatten_inputs
from dfmvr.types import RenderOutput

BACKENDS = ("auto", "numba", "torch")


class Backend(Protocol):
    """The three steps that a backend module implements, on flat, contiguous tensors of one device."""

    def find_visible(
        self, vertices: Tensor, triangles: Tensor, intrinsics: Tensor, image_size: int
    ) -> Tensor:
        """Return the visible triangles' ids [B, H, W] int64, -1 where there is none."""
        ...

    def interpolate(
        self,
        vertices: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        triangle_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return attributes [B, H, W, C], weights [B, H, W, 3] and depth [B, H, W]."""
        ...

    def interpolate_backward(
        self,
        vertices: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        triangle_ids: Tensor,
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Turn gradients of interpolate's results (None: zero) into those of vertices and attributes."""
        ...


@dataclass(frozen=True)
class ZBufferRenderer:
    """See base.Renderer.

    On the CPU both backends are deterministic; on CUDA the torch backend adds gradients in any order. The
    numba backend uses as many threads as torch (`torch.set_num_threads`), one image to a thread, and keeps
    its compiled code beside the package, else in the user's cache, or where NUMBA_CACHE_DIR says.
    """

    backend: str = "auto"
    """`numba` (CPU tensors only), `torch` (any device), or `auto`: numba on the CPU, torch elsewhere."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {BACKENDS}, got {self.backend!r}")

    def __call__(
        self,
        vertices_camera: Tensor,
        triangles: Tensor,
        attributes: Tensor,
        intrinsics: Tensor,
        image_size: int,
    ) -> RenderOutput:
        """Render; see base.Renderer."""
        flat = flatten_inputs(vertices_camera, triangles, attributes, intrinsics, image_size)
        backend = _load_backend(self.backend, vertices_camera.device)
        rasterise: Any = _Rasterise.apply
        results = rasterise(
            flat.vertices, flat.attributes, flat.triangles, flat.intrinsics, image_size, backend
        )
        return flat.unflatten(*results)


def _load_backend(name: str, device: torch.device) -> Backend:
    """Return the backend's module; numba is imported only if it is used."""
    if name == "auto":
        name = "numba" if device.type == "cpu" else "torch"
    if name == "numba":
        if device.type != "cpu":
            raise ValueError(f"backend 'numba': expected tensors on the CPU, got {device}")
        from dfmvr.render import zbuffer_numba

        return zbuffer_numba
    from dfmvr.render import zbuffer_torch

    return zbuffer_torch


class _Rasterise(torch.autograd.Function):
    """Saves its inputs and the visible ids only; the backward pass evaluates the weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        vertices: Tensor,
        attributes: Tensor,
        triangles: Tensor,
        intrinsics: Tensor,
        image_size: int,
        backend: Backend,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ids = backend.find_visible(vertices, triangles, intrinsics, image_size)
        image, weights, depth = backend.interpolate(vertices, triangles, attributes, intrinsics, ids)
        ctx.save_for_backward(vertices, attributes, triangles, intrinsics, ids)
        ctx.backend = backend
        ctx.mark_non_differentiable(ids)
        ctx.set_materialize_grads(False)
        return image, ids, weights, depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, image: Tensor | None, ids: None, weights: Tensor | None, depth: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if image is None and weights is None and depth is None:
            return (None,) * 6
        vertices, attributes, triangles, intrinsics, saved_ids = ctx.saved_tensors
        of_vertices, of_attributes = ctx.backend.interpolate_backward(
            vertices, triangles, attributes, intrinsics, saved_ids, (image, weights, depth)
        )
        return of_vertices, of_attributes, None, None, None, None
