"""The three-dimensional scene of one sample: the head with its hair and clothes, ready to be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmvr.data.datasets.curtain import hang_hair
from dfmvr.data.datasets.people import Assets, Person
from dfmvr.data.datasets.surfaces import (
    ALBEDO,
    GLOSS,
    N_CHANNELS,
    NORMAL,
    OPENNESS,
    SHARPNESS,
    STRANDS,
    Surfaces,
    join,
    mesh_normals,
)

Array = NDArray[Any]

_SHEET_ROUNDS = 60
"""Rounds of averaging that turn the relief of a face into a sheet of cloth."""
_SOFT_EDGE = 9.0
"""mm behind the hair line over which the hair rises."""


def build_scene(
    assets: Assets, person: Person, head: Array, rng: np.random.Generator, *, cloth_mask: bool
) -> Surfaces:
    """Dress a head.

    Args:
        assets: shared.
        person: whose head it is.
        head: [N, 3] float32 mm, level-1 head with its expression.
        rng: chance of this sample.
        cloth_mask: the person wears a surgical mask.
    """
    surface = _Surface(assets, head, person)
    surface.thin_brows()
    surface.light_teeth()
    surface.add_beard()
    hidden = surface.add_hair()
    surface.add_shirt(rng)
    if cloth_mask:
        hidden |= surface.add_cloth_mask(rng)
    labels = np.where(hidden, 0, assets.labels).astype(np.uint8)
    dressed = Surfaces(surface.vertices, assets.triangles, surface.channels(), labels)
    if person.hair.length == 0:
        return dressed
    return join([dressed, hang_hair(assets, person, surface.vertices)])


class _Surface:
    """The head's surface while it is being dressed."""

    def __init__(self, assets: Assets, head: Array, person: Person) -> None:
        self.assets, self.person, self.painter = assets, person, assets.painter
        self.vertices = head.copy()
        self.skin_normals = mesh_normals(head, assets.triangles)
        self.albedo = person.paint.albedo.copy()
        self.openness = self.painter["openness"].copy()
        self.gloss, self.sharpness = self._skin_gloss()
        self.strands = np.zeros(len(head), dtype=np.float32)
        self.rng = np.random.default_rng(person.growth_seed)

    def _skin_gloss(self) -> tuple[Array, Array]:
        part = self.painter["part"]
        gloss = np.full(len(part), 0.05, dtype=np.float32) + 0.05 * self.painter["nose_tip"]
        gloss += 0.06 * np.clip(self.painter["lips"], 0, 1)
        sharpness = np.full(len(part), np.log(14.0), dtype=np.float32)
        gloss[part > 0], sharpness[part > 0] = 0.25, np.log(40.0)
        eyes = (part == 1) | (part == 2)
        gloss[eyes], sharpness[eyes] = 0.9, np.log(160.0)
        gloss[self.painter["cavity"] > 0.5] = 0.08
        return gloss, sharpness

    def cover(self, weight: Array, colour: Array, gloss: float, sharpness: float) -> None:
        """Blend another material over the surface by `weight` [N]."""
        weight = np.clip(weight, 0, 1).astype(np.float32)
        self.albedo += weight[:, None] * (colour - self.albedo)
        self.gloss += weight * (gloss - self.gloss)
        self.sharpness += weight * (np.log(sharpness) - self.sharpness)

    def raise_by(self, height: Array) -> None:
        """Push the surface out along the skin's normals by mm [N]."""
        self.vertices = self.vertices + self.skin_normals * height[:, None].astype(np.float32)

    def thin_brows(self) -> None:
        """Take some of the brows' pigment away: the painter's brows are full."""
        rng = np.random.default_rng((self.person.growth_seed, 1))
        edge, whole = rng.uniform(0.3, 1), rng.uniform(0.6, 1)  # shares that stay
        along, across = self.painter["brow_along"], np.abs(self.painter["brow_across"])
        brow = _ramp((along + 0.1) / 0.05) * _ramp((1.1 - along) / 0.05) * _ramp((9 - across) / 2)
        outer = _ramp((across - 1.5) / 2.5)
        pale = brow * (1 - whole * (1 - (1 - edge) * outer))
        forehead = (along > 0) & (along < 1) & (across > 9) & (across < 12)
        self.albedo += pale[:, None].astype(np.float32) * (np.median(self.albedo[forehead], 0) - self.albedo)

    def light_teeth(self) -> None:
        """Let light onto the teeth as far as the lips part; the painter's are those of a closed mouth."""
        upper, lower = self.vertices[self.assets.landmarks_68[[62, 66]]]
        parted = np.clip((np.linalg.norm(upper - lower) - 1) / 4, 0, 1)
        teeth = (self.painter["part"] == 3) | (self.painter["part"] == 4)
        self.openness += teeth * parted * (0.9 - self.openness)

    def add_beard(self) -> None:
        """Let the beard stand out; its colour is in the paint."""
        hair = self.person.hair
        if hair.beard <= 0:
            return
        bushy = np.clip(self.painter["beard"], 0, 1) ** 2 * np.clip(
            1 + 0.3 * self.painter["noise"][:, 3], 0.3, 2
        )
        self.raise_by(hair.beard * bushy)
        self.strands = np.maximum(self.strands, 0.8 * bushy.astype(np.float32))

    def add_hair(self) -> Array:
        """Cover the scalp; returns where hair hides the skin, [N] bool."""
        hair, y = self.person.hair, self.vertices[:, 1]
        brow = self.vertices[self.assets.landmarks_68[[19, 24]]].mean(0)
        tragus = self.vertices[self.assets.landmarks_68[[0, 16]]].mean(0)
        ragged = self.painter["smooth"][:, 8:] @ (0.8 * self.rng.normal(size=24)).astype(np.float32)
        behind = self.painter["hair"] + hair.hairline + ragged
        if hair.fringe > 0:
            frontal = _ramp((self.vertices[:, 2] - tragus[2] - 25) / 30) * (y > brow[1] + 6)
            parted = 1 + 0.25 * np.tanh(
                (self.vertices[:, 0] - self.rng.normal(0, 25)) / 15
            ) * self.rng.choice([-1, 1])
            behind = behind + hair.fringe * frontal * parted * (self.painter["hair"] > -39)
        rise = _ramp(behind / _SOFT_EDGE)
        volume = np.clip((y - brow[1] + 25) / 70, 0.3, 1) * np.clip(
            1 + 0.12 * self.painter["noise"][:, 4], 0.5, 1.5
        )
        self.raise_by(hair.thickness * rise * volume)
        weight = _ramp((behind + 1.5) / 5) * hair.density
        tone = np.clip(1 + 0.2 * self.painter["noise"][:, 5] + 0.1 * ragged, 0.4, 2)[:, None]
        self.cover(weight, self.person.paint.hair_colour * tone.astype(np.float32), 0.10, 9.0)
        self.strands = np.maximum(self.strands, weight.astype(np.float32))
        hidden: Array = (weight > 0.5) & (hair.density > 0.5)
        return hidden

    def add_shirt(self, rng: np.random.Generator) -> None:
        """Colour the neck's lower end as cloth."""
        collar = rng.uniform(12, 40)
        neckline = collar - 8 * np.clip(self.skin_normals[:, 2], 0, 1)
        inside = _ramp((neckline - self.painter["collar"]) / 5)
        self.raise_by(4 * inside)
        self.cover(inside, _cloth_colour(rng), 0.02, 5.0)
        self.strands *= 1 - inside.astype(np.float32)

    def add_cloth_mask(self, rng: np.random.Generator) -> Array:
        """Cover nose, mouth and chin with a smooth sheet; returns where, [N] bool."""
        inside = (self.painter["cavity"] > 0.5) | (self.painter["part"] > 2)
        area = np.where(inside, 1, self.painter["lower_face"])
        weight = _ramp((area - 0.3) / 0.3)
        self.raise_by(rng.uniform(4, 8) * self.painter["lower_face"])
        average = _neighbour_average(self.assets.triangles, len(self.vertices))
        for _ in range(_SHEET_ROUNDS):
            self.vertices += area[:, None].astype(np.float32) * (average @ self.vertices - self.vertices)
        self.cover(weight, _cloth_colour(rng) * 0.5 + 0.4 * rng.random(), 0.02, 5.0)
        self.openness += weight * (0.8 - self.openness)
        self.strands *= 1 - weight.astype(np.float32)
        hidden: Array = weight > 0.5
        return hidden

    def channels(self) -> Array:
        """Pack what the renderer interpolates."""
        normals = mesh_normals(self.vertices, self.assets.triangles)
        rough = self.rng.normal(0, 0.16, normals.shape).astype(np.float32) * self.strands[:, None]
        columns = np.empty((len(normals), N_CHANNELS), dtype=np.float32)
        columns[:, ALBEDO], columns[:, NORMAL] = self.albedo, normals + rough
        columns[:, OPENNESS] = self.openness + self.strands * (
            np.maximum(self.openness, 0.75) - self.openness
        )
        columns[:, GLOSS], columns[:, SHARPNESS], columns[:, STRANDS] = (
            self.gloss,
            self.sharpness,
            self.strands,
        )
        return columns


def _neighbour_average(triangles: Array, count: int) -> Any:
    """A sparse [N, N] matrix that averages each vertex's neighbours."""
    from scipy.sparse import coo_matrix, diags

    rows, columns = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    links = coo_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(count, count)).tocsr()
    links = links + links.T
    degree = np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1)
    return diags((1 / degree).astype(np.float32)) @ links


def _cloth_colour(rng: np.random.Generator) -> Array:
    """Linear albedo of some fabric: greys and muted colours mostly."""
    colour = rng.uniform(0.03, 0.7) * (1 + rng.normal(0, 0.35, 3) * (rng.random() < 0.6))
    return np.clip(colour, 0.02, 0.9).astype(np.float32)


def _ramp(x: Array) -> Array:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    result: Array = x * x * (3 - 2 * x)
    return result
