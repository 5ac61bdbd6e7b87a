"""A synthetic multi-view data set: people the face model cannot reach exactly, seen by imperfect cameras.

`render_sample` makes one sample from (seed, subject, expression) alone, so that any worker makes the same one
in any order. The truth comes from the population's sliders and expression units, beyond the model's
coefficients; light, hair, clothes, occluders and cameras are beyond what the model's rendering explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.data.datasets.backdrop import sample_palette
from dfmvr.data.datasets.detector import detect_landmarks, parse_regions
from dfmvr.data.datasets.glasses import sample_glasses
from dfmvr.data.datasets.light import sample_light
from dfmvr.data.datasets.people import LEVEL, SCAN_LEVEL, Assets, Person, load_assets, sample_person
from dfmvr.data.datasets.picture import Camera, Setting, draw_view, visible
from dfmvr.data.datasets.scene import build_scene
from dfmvr.data.datasets.surfaces import Surfaces
from dfmvr.data.sample import Sample
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.types import NINE_VIEWS, VIEW_NAMES

Array = NDArray[Any]
SPLITS = ("train", "validation", "test")
RENDERING_VERSION = 3
"""Raised when the same settings give other samples than before."""
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_PERSON, _SAMPLE, _SMILE = 0, 1, 5
"""Streams of chance below (seed, subject, expression), beside the views' own."""
_VIEW = {name: 2 + k for k, name in enumerate(VIEW_NAMES)} | {
    name: 6 + k for k, name in enumerate(name for name in NINE_VIEWS if name not in VIEW_NAMES)
}
"""Each view's stream: a view is the same picture whichever others there are."""
_NEARLY_NEUTRAL = 0.25
"""Largest share of an expression that a person's first sample shows."""


@dataclass(frozen=True)
class SyntheticSettings:
    """How the synthetic data set is made. Lengths in pixels are meant at an image size of 224."""

    n_subjects: int = 600
    """People, split between training, validation and test."""
    expressions_per_subject: int = 2
    """Samples a person; the first is nearly neutral."""
    image_size: int = 112
    """Pixels a side."""
    supersample: int = 2
    """Samples a pixel and axis, against jagged edges."""
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the people in training, validation and test."""
    view_yaws: tuple[float, ...] = (-45.0, 0.0, 45.0)
    """Degrees of yaw of the views left, front, right; or nine angles, of NINE_VIEWS."""
    yaw_jitter: float = 7.0
    """Standard deviation of each view's yaw, degrees."""
    pitch_jitter: float = 6.0
    """Standard deviation of the head's pitch, degrees; a third of it is added anew in each view."""
    roll_jitter: float = 4.0
    """Standard deviation of each view's roll, degrees."""
    shift_jitter: float = 5.0
    """Standard deviation of the head's place in the picture, mm, in each axis."""
    distance_jitter: float = 35.0
    """Standard deviation of the distance to the camera, mm."""
    focal_jitter: float = 0.03
    """Relative standard deviation of the focal length; samples carry the nominal one, as photographs do."""
    landmark_noise: float = 1.2
    """Standard deviation of 2D landmarks, pixels."""
    landmark_outliers: float = 0.02
    """Share of 2D landmarks that are far off."""
    mask_noise: float = 1.2
    """Standard deviation of region boundaries, pixels."""
    mask_blunders: float = 0.01
    """Share of small regions that the parser misses."""
    landmark_3d_noise: float = 0.5
    """Standard deviation of 3D landmarks, mm."""
    toothy_smile_share: float = 0.3
    """Share of samples, the first of each person apart, that smile with bared teeth as for a photograph."""
    glasses_share: float = 0.15
    """Share of samples with glasses."""
    cloth_mask_share: float = 0.02
    """Share of samples with a surgical mask."""
    occluder_share: float = 0.12
    """Share of views with a hand or a thing before the face."""
    degradation: float = 1.0
    """Strength of blur, noise, tone and compression; 0 switches them off."""

    def __post_init__(self) -> None:
        for name in ("split_shares", "view_yaws"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("n_subjects", "expressions_per_subject", "supersample"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.image_size >= 16, "image_size", "at least 16 pixels", self.image_size)
        shares = self.split_shares
        valid = len(shares) == len(SPLITS) and min(shares) >= 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)
        _require(valid, "split_shares", "3 shares that sum to 1", shares)
        _require(len(self.view_yaws) in _NAMES, "view_yaws", "3 or 9 angles in degrees", self.view_yaws)
        for name in _DEVIATIONS:
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in _SHARES:
            _require(0 <= getattr(self, name) <= 1, name, "a share in [0, 1]", getattr(self, name))

    @property
    def view_names(self) -> tuple[str, ...]:
        """Names of the views, in the order of their yaws."""
        return _NAMES[len(self.view_yaws)]


_NAMES = {len(names): names for names in (VIEW_NAMES, NINE_VIEWS)}
_DEVIATIONS = (
    *("yaw_jitter", "pitch_jitter", "roll_jitter", "shift_jitter", "distance_jitter", "focal_jitter"),
    *("landmark_noise", "mask_noise", "landmark_3d_noise", "degradation"),
)
_SHARES = (
    *("landmark_outliers", "mask_blunders", "toothy_smile_share"),
    *("glasses_share", "cloth_mask_share", "occluder_share"),
)


def split_of(settings: SyntheticSettings, subject_index: int) -> str:
    """Return the split that a person belongs to.

    It does not depend on how many people there are: who tests one set never trains another. The golden
    ratio's multiples spread people over the splits so evenly that ten or more fill all three.
    """
    if not 0 <= subject_index < settings.n_subjects:
        raise ValueError(f"subject_index: expected 0 to {settings.n_subjects - 1}, got {subject_index}")
    place = subject_index * _GOLDEN_RATIO % 1
    first_validation, first_test = settings.split_shares[0], sum(settings.split_shares[:2])
    return SPLITS[int(place >= first_validation) + int(place >= first_test)]


def render_sample(
    settings: SyntheticSettings, seed: int, subject_index: int, expression_index: int
) -> Sample:
    """Make one sample; the same arguments give the same sample, in any process and order.

    Samples of validation and test carry the scan (the true level-2 surface), its landmarks and the dense
    correspondence.

    Raises:
        ValueError: an index is out of range.
    """
    if not 0 <= expression_index < settings.expressions_per_subject:
        last = settings.expressions_per_subject - 1
        raise ValueError(f"expression_index: expected 0 to {last}, got {expression_index}")
    split = split_of(settings, subject_index)
    assets = load_assets()
    person = sample_person(assets, np.random.default_rng([seed, subject_index, 0, _PERSON]))
    rng = np.random.default_rng([seed, subject_index, expression_index, _SAMPLE])
    activations = assets.population.sample_expression(rng)
    smile = np.random.default_rng([seed, subject_index, expression_index, _SMILE])
    if expression_index == 0:
        activations = activations * np.float32(rng.uniform(0, _NEARLY_NEUTRAL))
    elif smile.random() < settings.toothy_smile_share:
        activations = assets.population.expressions.sample_toothy_smile(smile)
    base = assets.population.base_vertices(person.subject, activations)
    face = assets.population.topology(LEVEL, "face").matrix @ base
    scene, setting = _stage(assets, settings, person, base, rng)
    pitch = rng.normal(0, settings.pitch_jitter)
    rigs = [np.radians([pitch, yaw, 0.0]) for yaw in settings.view_yaws]
    shots = [
        _shoot(
            np.random.default_rng([seed, subject_index, expression_index, _VIEW[name]]),
            settings,
            scene,
            setting,
            face[assets.face_landmarks_68],
            angles,
        )
        for name, angles in zip(settings.view_names, rigs, strict=True)
    ]
    noise = rng.normal(0, settings.landmark_3d_noise, (len(assets.face_landmarks_101), 3))
    intrinsics = default_intrinsics(settings.image_size).numpy()
    return Sample(
        sample_id=f"s{subject_index:05d}-e{expression_index:02d}",
        subject_id=f"s{subject_index:05d}",
        expression_id=f"e{expression_index:02d}",
        view_names=settings.view_names,
        view_yaws=np.array([angles[1] for angles in rigs], dtype=np.float32),
        images=np.stack([shot.image for shot in shots]),
        masks=np.stack([shot.mask for shot in shots]),
        landmarks_2d=np.stack([shot.landmarks for shot in shots]),
        landmarks_2d_weights=np.stack([shot.weights for shot in shots]),
        intrinsics=np.stack([intrinsics] * len(shots)),
        landmarks_3d=(face[assets.face_landmarks_101] + noise).astype(np.float32),
        **(_truth(assets, base) if split != "train" else {}),
    )


@dataclass(frozen=True, eq=False)
class _Shot:
    """One view as the data set holds it."""

    image: Array
    mask: Array
    landmarks: Array
    weights: Array


def _stage(
    assets: Assets, settings: SyntheticSettings, person: Person, base: Array, rng: np.random.Generator
) -> tuple[Surfaces, Setting]:
    """What all the views of a sample see."""
    head = assets.population.topology(LEVEL, "head").matrix @ base
    scene = build_scene(assets, person, head, rng, cloth_mask=bool(rng.random() < settings.cloth_mask_share))
    wears_glasses = rng.random() < settings.glasses_share
    glasses = sample_glasses(rng, head[assets.landmarks_68]) if wears_glasses else None
    return scene, Setting(sample_light(rng), sample_palette(rng), glasses)


def _shoot(
    rng: np.random.Generator,
    settings: SyntheticSettings,
    scene: Surfaces,
    setting: Setting,
    landmarks: Array,
    angles: Array,
) -> _Shot:
    """Draw one view and detect its landmarks [68, 3] and regions, with the camera near `angles` [3] rad."""
    size = settings.image_size
    camera = _sample_camera(rng, settings, angles)
    view = draw_view(
        rng,
        scene,
        Setting(setting.light.changed(rng), setting.palette, setting.glasses),
        camera,
        size,
        supersample=settings.supersample,
        occluder=bool(rng.random() < settings.occluder_share),
        degradation=settings.degradation,
    )
    pixel = size / 224
    mask = parse_regions(rng, view.labels, settings.mask_noise * pixel, settings.mask_blunders)
    projected = camera.project(landmarks)
    seen, noise = visible(view, projected), settings.landmark_noise * pixel
    found, weights = detect_landmarks(rng, projected[:, :2], seen, noise, settings.landmark_outliers)
    return _Shot(view.image, mask, found, weights)


def _sample_camera(rng: np.random.Generator, settings: SyntheticSettings, angles: Array) -> Camera:
    """A camera near the nominal angles [3] rad."""
    jitter = (settings.pitch_jitter / 3, settings.yaw_jitter, settings.roll_jitter)
    turned = angles + np.radians(rng.normal(0, jitter))
    rotation = euler_to_matrix(torch.tensor(turned, dtype=torch.float32)).numpy()
    shift = rng.normal(0, (settings.shift_jitter, settings.shift_jitter, settings.distance_jitter))
    intrinsics = default_intrinsics(settings.image_size).numpy().copy()
    intrinsics[[0, 1], [0, 1]] *= np.exp(rng.normal(0, settings.focal_jitter))
    return Camera(rotation, shift.astype(np.float32), intrinsics)


def _truth(assets: Assets, base: Array) -> dict[str, Array]:
    """The columns of the truth: the level-2 face, its landmarks, and the level-1 face."""
    face = assets.population.topology(LEVEL, "face")
    fine = assets.population.topology(SCAN_LEVEL, "face")
    scan = fine.matrix @ base
    return {
        "scan_vertices": scan,
        "scan_triangles": fine.triangles.astype(np.int32),
        "scan_landmarks_7": scan[assets.scan_landmarks_7],
        "dense_vertices": face.matrix @ base,
    }


def _require(condition: bool, field: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"synthetic.{field}: expected {expected}, got {got!r}")
