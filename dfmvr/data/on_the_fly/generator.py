"""Batches of faces made on the device that trains, from the seed and a step's place in the run alone.

Simpler than the rendered data set (`data.datasets.synthetic`): short hair at most, no glasses, cloth masks or
hands, skin of the face model's colours, no compression. People, expressions, poses, cameras and the errors of
landmarks and masks have the same distributions.

Axis letters: B sample, V view, N vertex, S side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.data.augment import step_generator
from dfmvr.data.datasets.synthetic import SyntheticSettings
from dfmvr.data.manifest import SPLITS, Manifest
from dfmvr.data.on_the_fly import findings, pictures
from dfmvr.data.on_the_fly.heads import Heads, Wardrobe, sample_light, shade
from dfmvr.data.on_the_fly.people import Population
from dfmvr.data.settings import DataSettings
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.render.base import Renderer
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import N_LANDMARKS, RenderOutput, ViewBatch

TRAINING, VALIDATION = 0, 1
"""Streams of chance: nobody who validates has trained."""


def place_generator(device: torch.device | str, seed: int, *place: int) -> torch.Generator:
    """Return a generator on `device` that depends on the seed and the place (stream, epoch, ...) alone."""
    return torch.Generator(device).manual_seed(step_generator(seed, *place).initial_seed())


def planned_manifest(data: DataSettings, synthetic: SyntheticSettings) -> Manifest:
    """Return the manifest of what will be made: as many samples as a stored set would have."""
    samples = synthetic.n_subjects * synthetic.expressions_per_subject
    rows = {
        split: round(share * samples) for split, share in zip(SPLITS, synthetic.split_shares, strict=True)
    }
    return Manifest(
        recipe={},
        recipe_hash="",
        image_size=data.image_size,
        views=list(synthetic.view_names),
        rows=rows,
        subjects=rows,  # everybody is seen once
        shards=dict.fromkeys(SPLITS, 0),
    )


@dataclass(frozen=True)
class _Cameras:
    """Where the heads are, in each view."""

    rotation: Tensor
    """[B, V, 3, 3]."""
    translation: Tensor
    """[B, V, 3] mm."""
    intrinsics: Tensor
    """[B, V, 3, 3] the true ones, pixels."""


class OnTheFly(nn.Module):
    """Makes batches; its constants are buffers, so that `to` moves it.

    Args:
        data: views, image size and the weight maps' dilation.
        synthetic: what is drawn, and how much of it; image size, glasses and cloth masks are not looked at.
        seed: of the bank of expressions.

    Raises:
        ValueError: the synthetic cameras do not have one of the views.
    """

    def __init__(self, data: DataSettings, synthetic: SyntheticSettings, seed: int = 0) -> None:
        super().__init__()
        unknown = [name for name in data.views if name not in synthetic.view_names]
        if unknown:
            raise ValueError(f"data.views: expected some of {synthetic.view_names}, got {unknown}")
        self.data, self.synthetic = data, synthetic
        self.population = Population(synthetic.toothy_smile_share, seed)
        self.wardrobe = Wardrobe()
        self.renderer: Renderer = ZBufferRenderer()
        yaws = [synthetic.view_yaws[synthetic.view_names.index(name)] for name in data.views]
        self.register_buffer("yaws", torch.deg2rad(torch.tensor(yaws)), persistent=False)
        self.register_buffer("nominal", default_intrinsics(data.image_size), persistent=False)
        self.yaws: Tensor
        self.nominal: Tensor

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self.yaws.device

    @torch.no_grad()
    def make(self, count: int, generator: torch.Generator, name: str = "fly") -> tuple[ViewBatch, Tensor]:
        """Make a batch.

        Args:
            count: B samples.
            generator: on this module's device; the same state gives the same batch.
            name: begins the samples' ids.

        Returns:
            The batch, unvaried, and the true positions [B, N, 3] mm of the face model's level-1 vertices.
        """
        nearly_neutral = 1 / self.synthetic.expressions_per_subject
        traits = self.population.sample_traits(count, generator)
        activations = self.population.sample_expressions(count, nearly_neutral, generator)
        coarse = self.population.vertices(traits, activations)
        heads = self.wardrobe.dress(coarse, generator)
        cameras = self._cameras(count, generator)
        camera = to_camera(heads.vertices.unsqueeze(1), cameras.rotation, cameras.translation)
        fine = self._draw(camera, cameras, self._surfaces(heads), self.synthetic.supersample)
        coarsely = fine
        if self.synthetic.supersample > 1:
            coarsely = self._draw(camera, cameras, heads.bare.unsqueeze(-1), 1)
        labels, depth = self._labels(heads, coarsely), coarsely.depth.flatten(0, 1)
        images, hidden = self._pictures(fine, cameras, generator)
        pixel = self.data.image_size / 224
        masks = findings.parse_regions(
            labels.masked_fill(hidden, 0),
            self.synthetic.mask_noise * pixel,
            self.synthetic.mask_blunders,
            generator,
        )
        marks, marks_3d = heads.landmarks.split((N_LANDMARKS, heads.landmarks.shape[1] - N_LANDMARKS), 1)
        seen = to_camera(marks.unsqueeze(1), cameras.rotation, cameras.translation)
        points = project(seen, cameras.intrinsics).flatten(0, 1)
        found, weights = findings.detect_landmarks(
            points,
            findings.visible(depth, hidden, points, seen[..., 2].flatten(0, 1)),
            self.synthetic.landmark_noise * pixel,
            self.synthetic.landmark_outliers,
            generator,
        )
        noise = torch.randn(marks_3d.shape, generator=generator, device=marks_3d.device)
        views = (count, len(self.yaws))
        batch = ViewBatch(
            images=images.unflatten(0, views),
            masks=masks.unflatten(0, views),
            weight_maps=findings.weight_maps(masks, self.data.weight_dilation).unflatten(0, views),
            landmarks_2d=found.unflatten(0, views),
            landmarks_2d_weights=weights.unflatten(0, views),
            landmarks_3d=marks_3d + self.synthetic.landmark_3d_noise * noise,
            landmarks_3d_valid=torch.ones(count, dtype=torch.bool, device=noise.device),
            intrinsics=self.nominal.expand(*views, 3, 3),
            view_yaws=self.yaws.expand(views),
            sample_ids=tuple(f"{name}-{k}" for k in range(count)),
        )
        return batch, self.wardrobe.face_vertices(coarse)

    def _cameras(self, count: int, generator: torch.Generator) -> _Cameras:
        """Turn, shift and zoom each view a little; a head's pitch is common to its views, up to a third."""
        settings, shape = self.synthetic, (count, len(self.yaws))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.yaws.device)

        pitch = settings.pitch_jitter * (normal(count, 1) + normal(*shape) / 3)
        turns = torch.stack(
            [pitch, settings.yaw_jitter * normal(*shape), settings.roll_jitter * normal(*shape)], -1
        )
        turns = turns * math.pi / 180
        turns[..., 1] += self.yaws
        shift = settings.shift_jitter * normal(*shape, 3)
        shift[..., 2] = settings.distance_jitter * normal(*shape)
        intrinsics = self.nominal.repeat(*shape, 1, 1)
        intrinsics[..., :2, :2] *= (settings.focal_jitter * normal(*shape, 1, 1)).exp()
        return _Cameras(euler_to_matrix(turns), shift, intrinsics)

    def _surfaces(self, heads: Heads) -> Tensor:
        """Return what the pictures need of each vertex: [B, N, 9] as `shade` has it, and its bareness."""
        normals = vertex_normals(heads.vertices, self.wardrobe.triangles)
        gloss = self.wardrobe.gloss * heads.bare
        scalars = [heads.openness, gloss, self.wardrobe.sharpness.expand_as(gloss), heads.bare]
        return torch.cat([heads.albedo, normals, torch.stack(scalars, -1)], -1)

    def _labels(self, heads: Heads, drawn: RenderOutput) -> Tensor:
        """Return the labels of the nearest vertex at the pixels' centres, [B x V, S, S]; hair has none."""
        labels = self.wardrobe.labels.expand(len(heads.bare), -1).masked_fill(heads.bare < 0.5, 0)
        corners = self.wardrobe.triangles[drawn.triangle_ids.clamp_min(0)]
        nearest = corners.gather(-1, drawn.barycentrics.argmax(-1, keepdim=True)).squeeze(-1)
        found = labels.gather(1, nearest.flatten(1)).view_as(nearest)
        return found.masked_fill(~drawn.mask, 0).flatten(0, 1)

    def _pictures(
        self, drawn: RenderOutput, cameras: _Cameras, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return pictures [B x V, 3, S, S] sRGB, and where something hides the head, [B x V, S, S]."""
        settings = self.synthetic
        samples, views = cameras.translation.shape[:2]
        surface = drawn.attributes.flatten(2, 3)
        light = sample_light(samples, views, generator)
        radiance = shade(light, surface[..., :9], cameras.rotation[..., 2, :])
        share = drawn.mask.flatten(2).unsqueeze(-1).float()
        channels = torch.cat([radiance, surface[..., 9:], torch.ones_like(share)], -1) * share
        channels = channels.unflatten(2, drawn.mask.shape[2:]).flatten(0, 1).movedim(-1, 1)
        channels = functional.avg_pool2d(channels, settings.supersample)
        behind = pictures.backgrounds(samples, views, self.data.image_size, generator)
        image = channels[:, :3] + (1 - channels[:, 4:]) * behind
        image, hidden = pictures.hide(image, settings.occluder_share, generator)
        image = pictures.expose(image, channels[:, 3], generator)
        return pictures.take(image, settings.degradation, generator), hidden

    def _draw(self, camera: Tensor, cameras: _Cameras, attributes: Tensor, factor: int) -> RenderOutput:
        """Draw attributes [B, N, C] of vertices [B, V, N, 3], with `factor` times as many pixels a side."""
        intrinsics = cameras.intrinsics.clone()
        intrinsics[..., :2, :] *= factor
        size = self.data.image_size * factor
        return self.renderer(camera, self.wardrobe.triangles, attributes.unsqueeze(1), intrinsics, size)
