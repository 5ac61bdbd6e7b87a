"""Heads to be drawn, in torch: fine meshes with skin, painted hair and a collar, and the light on them.

Axis letters: B sample, V view, N vertex of the level-1 head, L lamp, P point of a surface.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.data.datasets.light import SKIN_WRAP
from dfmvr.data.datasets.people import LEVEL, load_assets
from dfmvr.morphable.model import MorphableModel

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_BLOND, _BLACK = (0.36, 0.23, 0.11), (0.012, 0.009, 0.008)
"""Linear albedo of hair; the shades between are geometric means."""
_BALD_SHARE = 0.15
_SKIN_GLOSS, _EYE_GLOSS = 0.07, 0.9
_SKIN_SHARPNESS, _EYE_SHARPNESS = 14.0, 160.0
_FIRST_EYE, _LAST_EYE, _FIRST_TOOTH, _LAST_TOOTH = 1, 2, 3, 4
"""Parts of the painter's field `part`."""
_INNER_LIPS = (62, 66)
"""iBUG's middle of the inner lips, upper and lower."""


@dataclass(frozen=True)
class Heads:
    """B heads, the same in all their views."""

    vertices: Tensor
    """[B, N, 3] mm, model space."""
    albedo: Tensor
    """[B, N, 3] linear."""
    openness: Tensor
    """[B, N] share of the sky that is seen."""
    bare: Tensor
    """[B, N] 1 on skin, 0 under hair."""
    landmarks: Tensor
    """[B, 68 + 101, 3] mm: iBUG's, then Pixel-Face's, on the face model's own mesh."""


@dataclass(frozen=True)
class Light:
    """Light in model axes, as each view's camera meets it (data.datasets.light has one view's)."""

    sky: Tensor
    """[B, V, 3] average ambient radiance."""
    slope: Tensor
    """[B, 3, 3]: ambient radiance changes by normal @ slope."""
    directions: Tensor
    """[B, V, L, 3] unit vectors towards the lamps."""
    lamps: Tensor
    """[B, V, L, 3] lamp radiances."""


class Wardrobe(nn.Module):
    """Dresses coarse heads; all constants are buffers."""

    def __init__(self) -> None:
        super().__init__()
        assets, head = load_assets(), MorphableModel.load(level=LEVEL, part="head")
        fields, face = assets.painter.fields, assets.population.topology(LEVEL, "face").matrix
        part = fields["part"]
        eyes = (part >= _FIRST_EYE) & (part <= _LAST_EYE)
        marks = face[np.concatenate([assets.face_landmarks_68, assets.face_landmarks_101])]
        constants = {
            "refine": _sparse(assets.population.topology(LEVEL, "head").matrix),
            "face": _sparse(face),
            "marks": torch.from_numpy(marks.toarray()),
            "triangles": torch.from_numpy(assets.triangles),
            "labels": torch.from_numpy(assets.labels.astype(np.int64)),
            "mean_albedo": head.mean_albedo,
            "albedo_basis": head.albedo_basis.flatten(1),
            "hair_line": torch.from_numpy(fields["hair"]),
            "ragged": torch.from_numpy(0.8 * fields["smooth"][:, 8:].T),
            "streaks": torch.from_numpy(1 + 0.2 * fields["noise"][:, 5]),
            "collar": torch.from_numpy(fields["collar"]),
            "openness": torch.from_numpy(fields["openness"]),
            "teeth": torch.from_numpy((part >= _FIRST_TOOTH) & (part <= _LAST_TOOTH)),
            "gloss": torch.from_numpy(np.where(eyes, _EYE_GLOSS, _SKIN_GLOSS).astype(np.float32)),
            "sharpness": torch.from_numpy(np.where(eyes, _EYE_SHARPNESS, _SKIN_SHARPNESS).astype(np.float32)),
            "hair_colours": torch.tensor([_BLOND, _BLACK]).log(),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def face_vertices(self, coarse: Tensor) -> Tensor:
        """Return the face model's level-1 vertices [B, N', 3] mm of coarse heads [B, N0, 3]."""
        return _product(self.face, coarse)

    def dress(self, coarse: Tensor, generator: torch.Generator) -> Heads:
        """Give coarse heads [B, N0, 3] mm skin, hair and a collar."""
        count, device = len(coarse), coarse.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, device=device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device)

        vertices, landmarks = _product(self.refine, coarse), self.marks @ coarse
        albedo = normal(len(self.albedo_basis)) @ self.albedo_basis
        albedo = (self.mean_albedo + albedo.unflatten(-1, (-1, 3))).clamp(0.004, 0.95)
        behind = self.hair_line + 4 * normal(1) + normal(len(self.ragged)) @ self.ragged
        hairy = uniform(1) >= _BALD_SHARE
        hair = _ramp((behind + 1.5) / 5) * hairy * (0.88 + 0.1 * uniform(1))
        darkness = uniform(1).sqrt()
        colour = (self.hair_colours[0] + darkness * (self.hair_colours[1] - self.hair_colours[0])).exp()
        albedo = albedo + hair.unsqueeze(-1) * (self._tones(colour) - albedo)
        thickness = 2 + 14 * uniform(1)
        outwards = functional.normalize(vertices - vertices.mean(1, keepdim=True), dim=-1)
        vertices = vertices + (thickness * hairy * _ramp(behind / 9)).unsqueeze(-1) * outwards
        cloth = _ramp((12 + 28 * uniform(1) - self.collar) / 5).unsqueeze(-1)
        shirt = (0.03 + 0.67 * uniform(1, 1)) * (1 + 0.2 * normal(1, 3))
        albedo = albedo + cloth * (shirt.clamp(0.02, 0.9) - albedo)
        return Heads(vertices, albedo, self._openness(landmarks), 1 - hair, landmarks)

    def _tones(self, colour: Tensor) -> Tensor:
        """Return hair of uneven brightness [B, N, 3]."""
        return self.streaks.clamp(0.4, 2).unsqueeze(-1) * colour.unsqueeze(1)

    def _openness(self, landmarks: Tensor) -> Tensor:
        """Let light onto the teeth as far as the lips part; [B, N]."""
        upper, lower = (landmarks[:, place] for place in _INNER_LIPS)
        parted = (((upper - lower).norm(dim=-1, keepdim=True) - 1) / 4).clamp(0, 1)
        return self.openness + self.teeth * parted * (0.9 - self.openness)

    refine: Tensor
    face: Tensor
    marks: Tensor
    triangles: Tensor
    labels: Tensor
    mean_albedo: Tensor
    albedo_basis: Tensor
    hair_line: Tensor
    ragged: Tensor
    streaks: Tensor
    collar: Tensor
    openness: Tensor
    teeth: Tensor
    gloss: Tensor
    sharpness: Tensor
    hair_colours: Tensor


def sample_light(count: int, n_views: int, generator: torch.Generator) -> Light:
    """Draw lights, from overcast to one strong lamp at the side; views differ a little."""
    device = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    tint = (0.07 * normal(3)).exp()
    sky = (0.35 + 0.6 * uniform(1)) * tint
    slope = 0.12 * normal(3)
    slope[:, 1] += 0.25 * uniform()
    directions = normal(1, 2, 3)
    for axis, (spread, centre) in enumerate(((1.0, 0.0), (0.6, 0.45), (0.8, 0.7))):
        directions[..., axis] = directions[..., axis] * spread + centre
    directions = functional.normalize(directions, dim=-1) + 0.12 * normal(n_views, 2, 3)
    strength = 0.15 + 0.95 * uniform(1, 2, 1)
    strength[:, :, 1] *= 0.5 * (uniform(1, 1) < 0.4)
    lamps = strength * (0.09 * normal(1, 2, 3)).exp() * (0.15 * normal(n_views, 2, 1)).exp()
    return Light(
        sky=sky.unsqueeze(1) * (0.1 * normal(n_views, 1)).exp(),
        slope=slope.unsqueeze(-1) * (tint * sky).unsqueeze(1),
        directions=functional.normalize(directions, dim=-1),
        lamps=lamps,
    )


def shade(light: Light, surface: Tensor, view: Tensor) -> Tensor:
    """Return the radiance of points of the surface: soft diffuse light and highlights.

    Args:
        light: of B samples in V views.
        surface: [B, V, P, 9]: albedo, normal (model axes, any length), openness, gloss, sharpness.
        view: [B, V, 3] unit vectors towards the camera, model axes.

    Returns:
        [B, V, P, 3] linear.
    """
    albedo, normals = surface[..., :3], functional.normalize(surface[..., 3:6], dim=-1)
    openness, gloss, sharpness = surface[..., 6:].split(1, -1)
    sky = light.sky.unsqueeze(2)
    diffuse = torch.maximum(sky + normals @ light.slope.unsqueeze(1), 0.05 * sky) * openness
    shadow = 0.35 + 0.65 * openness
    highlight = torch.zeros_like(albedo)
    wrap = [float(amount) for amount in SKIN_WRAP]
    half = functional.normalize(light.directions + view.unsqueeze(2), dim=-1)
    cosines, glints = normals @ light.directions.mT, (normals @ half.mT).clamp_min(1e-4)
    for lamp in range(cosines.shape[-1]):
        cosine, radiance = cosines[..., lamp, None], light.lamps[:, :, None, lamp]
        creeping = torch.cat([(cosine + amount) / (1 + amount) for amount in wrap], -1)
        diffuse = diffuse + creeping.clamp_min(0) * shadow * radiance
        glint = gloss * (sharpness * glints[..., lamp, None].log()).exp() * (cosine > 0) * shadow
        highlight = highlight + glint * radiance
    return albedo * diffuse + highlight


def _ramp(x: Tensor) -> Tensor:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _sparse(matrix: csr_matrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            matrix.shape,
            check_invariants=False,
        )


def _product(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply a sparse [N, N0] matrix to each sample of [B, N0, 3]."""
    rows = points.transpose(0, 1).flatten(1)
    return (matrix @ rows).unflatten(1, (-1, 3)).transpose(0, 1)
