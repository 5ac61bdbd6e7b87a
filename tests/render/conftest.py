from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.types import RenderOutput


@dataclass(frozen=True)
class Scene:
    """A renderer's arguments."""

    vertices: Tensor
    triangles: Tensor
    attributes: Tensor
    intrinsics: Tensor
    size: int

    def render(self, renderer: Callable[..., RenderOutput]) -> RenderOutput:
        return renderer(self.vertices, self.triangles, self.attributes, self.intrinsics, self.size)

    def leaves(self) -> Scene:
        """Return a copy whose vertices and attributes want gradients."""
        return replace(
            self,
            vertices=self.vertices.detach().clone().requires_grad_(),
            attributes=self.attributes.detach().clone().requires_grad_(),
        )

    def double(self) -> Scene:
        return replace(
            self,
            vertices=self.vertices.double(),
            attributes=self.attributes.double(),
            intrinsics=self.intrinsics.double(),
        )

    def gradients(self, renderer: Callable[..., RenderOutput]) -> tuple[Tensor, Tensor]:
        """Return the gradients of a fixed random sum of attributes, weights and depth."""
        leaves = self.leaves()
        output = leaves.render(renderer)
        generator = torch.Generator().manual_seed(3)
        total = leaves.vertices.new_zeros(())
        for value in (output.attributes, output.barycentrics, output.depth):
            draw = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            total = total + (value * draw.to(value)).sum()
        total.backward()
        return leaves.vertices.grad, leaves.attributes.grad


def sheet(n: int) -> tuple[Tensor, Tensor]:
    """An open, bumpy, head-sized sheet that hides parts of itself: n * n vertices, model space, mm."""
    grid = torch.linspace(-1, 1, n)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    x, y = u * (1 - v * v / 2).sqrt(), v * (1 - u * u / 2).sqrt()
    radius = (x * x + y * y).sqrt().clamp_min(1e-8)
    polar = radius * math.radians(105)
    direction = torch.stack((polar.sin() * x / radius, polar.sin() * y / radius, polar.cos()), -1)
    bump = 1 + 0.35 * torch.exp(-((x / 0.15) ** 2 + (y / 0.25) ** 2)) + 0.02 * torch.sin(40 * x + 30 * y)
    points = direction * torch.tensor([75.0, 100.0, 80.0]) * bump.unsqueeze(-1)
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.stack((torch.stack((a, b, c), -1), torch.stack((b, d, c), -1)), 2).reshape(-1, 3)
    return points.reshape(-1, 3), triangles


@pytest.fixture
def head() -> Scene:
    """Two subjects in three views, [2, 3, ...]: 450 triangles at 40 px."""
    points, triangles = sheet(16)
    angles = torch.tensor([[[0.05, yaw, 0.1 * subject] for yaw in (-0.7, 0.0, 0.7)] for subject in (0, 1)])
    posed = points @ euler_to_matrix(angles).mT
    vertices = posed * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 1000.0])
    attributes = torch.rand(2, 3, len(points), 4, generator=torch.Generator().manual_seed(1))
    intrinsics = default_intrinsics(40).expand(2, 3, 3, 3)
    return Scene(vertices, triangles, attributes, intrinsics, 40)


@pytest.fixture
def soup() -> Scene:
    """120 large triangles that cut through each other, some out of the picture, seen with skew; [1, ...]."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(120, 1, 3, generator=generator) * torch.tensor([70.0, 70.0, 120.0])
    corners = centres + torch.randn(120, 3, 3, generator=generator) * 40
    vertices = corners.reshape(1, -1, 3) + torch.tensor([0.0, 0.0, 700.0])
    attributes = torch.rand(1, 360, 2, generator=generator)
    intrinsics = torch.tensor([[[180.0, 9.0, 20.0], [0.0, 210.0, 23.0], [0.0, 0.0, 1.0]]])
    return Scene(vertices, torch.arange(360).view(-1, 3), attributes, intrinsics, 48)


@pytest.fixture
def tile() -> Scene:
    """Two triangles, a slanted square that fills an image of 8 px; no pixel's centre on an edge."""
    vertices = torch.tensor(
        [[[-60.0, -61.0, 900.0], [62.0, -60.0, 1000.0], [63.0, 64.0, 1100.0], [-61.0, 62.0, 950.0]]]
    )
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    attributes = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(2))
    intrinsics = torch.tensor([[[70.0, 0.0, 4.1], [0.0, 70.0, 3.8], [0.0, 0.0, 1.0]]])
    return Scene(vertices, triangles, attributes, intrinsics, 8)
