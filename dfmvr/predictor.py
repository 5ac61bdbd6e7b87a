"""Photographs in, Reconstruction out: the one way to use a trained model.

    predictor = Predictor.load()
    face = predictor({"front": Photo(image, points)})

The command line, the jobs and the server all go through it; it knows nothing of picture files, Ray or HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfmvr.confidence import Calibration, ErrorModel
from dfmvr.data.preprocess.crop import Crop, fit_crop, nominal_crop
from dfmvr.data.preprocess.detect import PictureRejected
from dfmvr.data.preprocess.landmark import LandmarkFinder
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.fold import fold_batch_norms
from dfmvr.networks.weights import ModelCard, WeightsError, load_model
from dfmvr.reconstructor import reconstructions
from dfmvr.refine import STEPS, refine_params
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import N_LANDMARKS, NINE_VIEWS, REGION_NAMES, FaceParams, Reconstruction, ViewBatch

SHIPPED_MODEL = Path(__file__).parent / "weights" / "default"
"""Folder of the weights that come with the package."""

MESH_LEVEL = 2
"""Subdivision level of the meshes that come out."""

NOMINAL_YAWS = MappingProxyType(
    dict(zip(NINE_VIEWS, np.radians([-75.0, -60.0, -45.0, -20.0, 0.0, 20.0, 45.0, 60.0, 75.0]), strict=True))
)
"""Radians: where the views of the training sets lie, give or take some ten degrees."""
SWAPPED_YAW = np.radians(10.0)
"""A side view whose nose points this far to the wrong side is probably the other side's."""
MAX_YAW = np.radians(75.0)
"""Beyond this, one eye is hidden, and its points are guesses."""
MAX_ENLARGEMENT = 2.0
"""A crop enlarged more than this shows a face too small to tell much."""
NOT_REFINED = "not refined: no photograph has 68 landmarks that fit a face near the network's answer"
"""The warning of `Predictor.refine` where it left the network's answer as it was."""


@dataclass(frozen=True, eq=False)
class Photo:
    """One picture of a face, and what is known about it."""

    image: NDArray[Any]
    """[H, W, 3] RGB, uint8, or floating in [0, 1]."""
    points: NDArray[Any] | None = None
    """[5, 2] pixels (right eye, left eye, tip of the nose, right and left corner of the mouth: the subject's
    right, which is the image's left) or [68, 2] iBUG landmarks. None: the image is a crop already."""
    mask: NDArray[Any] | None = None
    """[H, W] region labels 0-9 of the image. None: the network does without (all background)."""
    yaw: float | None = None
    """Radians that the head is turned, roughly; negative when the nose points to the image's left. None: as
    the view's name says, or unknown. Where there are points, they say it more exactly."""

    def __post_init__(self) -> None:
        image, mask = self.image, self.mask
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image: expected [H, W, 3] RGB, got {list(image.shape)}")
        if image.dtype != np.uint8 and not (
            np.issubdtype(image.dtype, np.floating) and 0 <= image.min() <= image.max() <= 1
        ):
            raise ValueError(
                f"image: expected uint8 or floating values in [0, 1], "
                f"got {image.dtype} values from {image.min()} to {image.max()}"
            )
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(f"mask: expected {list(image.shape[:2])} as the image, got {list(mask.shape)}")
        if mask is not None and not 0 <= mask.min() <= mask.max() < len(REGION_NAMES):
            raise ValueError(
                f"mask: expected labels 0 to {len(REGION_NAMES) - 1}, got {mask.min()} to {mask.max()}"
            )


Photos = Mapping[str, Photo] | Sequence[Photo]
"""Photographs of one face by the names of their views; or without names, for a network that takes any."""


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """Photographs, cropped and masked as the network expects them."""

    batch: ViewBatch
    """One sample, B = 1."""
    names: tuple[str, ...]
    """[V] of the views."""
    sources: tuple[str, ...]
    """[V] for each of the network's views, which of the given photographs fills it."""
    crops: tuple[Crop, ...]
    """[V] where each view lies in its photograph."""
    warnings: tuple[str, ...]


class FaceNotFound(ValueError):
    """A photograph shows no face, or more than one; `view` names it, `reason` and `detail` say why."""

    def __init__(self, view: str, rejected: PictureRejected) -> None:
        super().__init__(f"{view} view: {rejected.detail}")
        self.view, self.reason, self.detail = view, rejected.reason, rejected.detail


class Predictor:
    """A trained network and its face model, ready for photographs or batches.

    Args:
        network: the trained network.
        card: what it was trained for.
        face_model: the face model whose coefficients it predicts, at the level wanted for meshes.
        device: where to compute.
        calibration: how the network's answers err; None: answers come without expected errors.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        face_model: MorphableModel,
        device: str = "cpu",
        calibration: Calibration | None = None,
    ) -> None:
        if face_model.hash != card.face_model_hash:
            raise WeightsError(
                f"the network was trained with face model {card.face_model_hash[:12]}, "
                f"but this one is {face_model.hash[:12]}: its coefficients would mean another face"
            )
        self.device = device
        self.card = card
        self.network = fold_batch_norms(network).to(device)
        self.face_model = face_model.to(device).eval()
        self.calibration = calibration
        self.renderer = ZBufferRenderer()

    @classmethod
    def load(
        cls,
        model_dir: str | Path | None = None,
        face_model_path: str | Path | None = None,
        device: str = "cpu",
    ) -> Predictor:
        """Load a trained model.

        Args:
            model_dir: folder with weights.safetensors and model.json, such as runs/<id>/model; None means the
                weights that come with the package.
            face_model_path: the face model that it was trained with; None means the one that comes with the
                package.
            device: where to compute.

        Raises:
            WeightsError: files are missing or damaged, or network and face model do not belong together.
            FaceFileError: the face model cannot be read.
        """
        if model_dir is None and not SHIPPED_MODEL.is_dir():
            raise WeightsError(
                f"{SHIPPED_MODEL}: this copy of dfmvr comes without trained weights; "
                "name a model folder (after `make quickstart`: runs/quickstart/model)"
            )
        folder = SHIPPED_MODEL if model_dir is None else model_dir
        network, card = load_model(folder)
        calibration = Calibration.load(folder, card.weights_hash)
        face_model = MorphableModel.load(face_model_path, level=MESH_LEVEL)
        try:
            return cls(network, card, face_model, device, calibration)
        except WeightsError as error:
            raise WeightsError(f"{face_model_path or 'the face model of dfmvr'}: {error}") from error

    @property
    def image_size(self) -> int:
        """Side in pixels of the views that the network takes."""
        return self.card.image_size

    @property
    def n_views(self) -> int:
        """Number of views that the network takes; the most that it was trained with where it takes any."""
        return len(self.card.view_names)

    @property
    def takes_any_views(self) -> bool:
        """Whether the network takes any number of views, in any order, whatever their names."""
        return self.card.network.name == "set_rednet"

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights."""
        return self.card.weights_hash

    def __call__(self, photos: Photos) -> Reconstruction:
        """Reconstruct a face from photographs.

        Args:
            photos: by view name (`card.view_names`); at least one. A view that is not given is filled as
                `prepare` says. Where the network `takes_any_views`: any photographs, by any names or without.

        Raises:
            ValueError: a photograph, its points or its mask cannot be used; the message names the view.
        """
        return self.reconstruct(self.prepare(photos))

    def unlocated(self, photos: Photos) -> list[str]:
        """Return the views whose photographs have no points and are no crops either."""
        crop = (self.image_size, self.image_size)
        named = self._named(photos)
        return [name for name, p in named.items() if p.points is None and p.image.shape[:2] != crop]

    def locate(self, photos: Photos, finder: LandmarkFinder) -> dict[str, Photo]:
        """Give the `unlocated` photographs the 68 landmarks that `finder` finds.

        Raises:
            FaceNotFound: a photograph shows no face, or more than one.
        """
        wanted = self.unlocated(photos)
        located = self._named(photos)
        for name, found in zip(wanted, finder([_as_bytes(located[n].image) for n in wanted]), strict=True):
            if isinstance(found, PictureRejected):
                raise FaceNotFound(name, found)
            located[name] = dataclasses.replace(located[name], points=found.points)
        return located

    def prepare(self, photos: Photos) -> PreparedViews:
        """Crop and mask photographs, and put them where the network expects them.

        A view that is not given is filled with the given photograph of the nearest nominal yaw. A network
        with `view_flags` is told not to look at it; any other sees one picture twice. Depth rests on fewer
        observations in both cases: `warnings` says so. Where the network `takes_any_views`, the views are the
        photographs that are given, in their order.

        Raises:
            ValueError: as `__call__`.
        """
        photos = self._named(photos)
        names = tuple(photos) if self.takes_any_views else self.card.view_names
        sources, warnings = self._assign(photos, names)
        crops = {name: self._crop(name, photos[name]) for name in dict.fromkeys(sources)}
        warnings += [text for name, crop in crops.items() for text in _doubts(name, photos[name], crop)]
        images = {
            name: torch.from_numpy(crop.cut(_as_bytes(photos[name].image))) for name, crop in crops.items()
        }
        masks = {name: self._mask(photos[name], crop) for name, crop in crops.items()}
        batch = self._as_batch(
            torch.stack([images[name] for name in sources]),
            torch.stack([masks[name] for name in sources]),
            [_known_yaw(name, photos[name], crops[name]) for name in sources],
            [name in photos for name in names],
        )
        for v, name in enumerate(names):
            points = photos[name].points if name in photos else None
            if points is not None and len(points) == N_LANDMARKS:
                batch.landmarks_2d[0, v] = torch.from_numpy(crops[name].points_to_crop(points))
                batch.landmarks_2d_weights[0, v] = 1.0
        return PreparedViews(batch, names, sources, tuple(crops[name] for name in sources), tuple(warnings))

    def reconstruct(self, views: PreparedViews) -> Reconstruction:
        """Reconstruct a face from prepared views."""
        return dataclasses.replace(self.predict_batch(views.batch)[0], warnings=views.warnings)

    def refine(
        self, views: PreparedViews, params: FaceParams | None = None, steps: int = STEPS
    ) -> Reconstruction:
        """Reconstruct a face and fit it to the landmarks of its photographs (refine.py).

        Only photographs with 68 points take part; without any, this is `reconstruct`, and a warning says so.

        Args:
            views: prepared views.
            params: where to start, leading shape [1], on `device`; None: from the network's answer.
            steps: at most this many.

        Raises:
            ValueError: `steps` is negative.
        """
        batch, warnings = views.batch.to(self.device), views.warnings
        if params is None:
            params = self.predict_params(batch)
        with torch.no_grad():
            refined = refine_params(params, batch, self.face_model, steps)
            face = reconstructions(refined.params, batch.intrinsics, self.face_model)[0]
        if refined.covariance is None:
            warnings += (NOT_REFINED,)
        expected = self._expected_errors(batch, refined.covariance)[0]
        return dataclasses.replace(face, warnings=warnings, expected_error_mm=expected)

    def predict_batch(self, batch: ViewBatch) -> list[Reconstruction]:
        """Reconstruct every sample of a batch; landmarks, their weights and weight maps are not read."""
        params = self.predict_params(batch)
        with torch.inference_mode():
            faces = reconstructions(params, batch.intrinsics.to(self.device), self.face_model)
        expected = self._expected_errors(batch)
        return [
            dataclasses.replace(face, expected_error_mm=errors)
            for face, errors in zip(faces, expected, strict=True)
        ]

    def predict_params(self, batch: ViewBatch) -> FaceParams:
        """Return the parameters of every sample of a batch, leading shape [B]."""
        with torch.inference_mode():
            batch = batch.to(self.device)
            params: FaceParams = self.network(batch.images, batch.masks, batch.view_present, batch.view_yaws)
        return params

    def _expected_errors(
        self, batch: ViewBatch, covariance: Tensor | None = None
    ) -> list[dict[str, float] | None]:
        """Return each sample's expected errors in mm by region; None without a calibration.

        Args:
            batch: what the faces were reconstructed from.
            covariance: of the refined coefficients, for a batch of one; None: the network's answers.
        """
        if self.calibration is None:
            return [None] * len(batch.images)
        present = batch.view_present
        views = [batch.n_views] * len(batch.images) if present is None else present.sum(1).tolist()
        with_masks = (batch.masks > 0).flatten(1).any(1).tolist()
        found: list[dict[str, float] | None] = []
        for case in map(self.calibration.case, views, with_masks):
            if case is None or covariance is None:
                found.append(None if case is None else dict(case.network_mm))
            else:
                errors = case.calibrated(self._error_model.regions(covariance)).tolist()
                found.append(dict(zip(self._error_model.places, errors, strict=True)))
        return found

    @cached_property
    def _error_model(self) -> ErrorModel:
        return ErrorModel(self.face_model)

    def _named(self, photos: Photos) -> dict[str, Photo]:
        """Give names to photographs that come without."""
        if isinstance(photos, Mapping):
            return dict(photos)
        if not self.takes_any_views:
            raise ValueError(
                f"photos: expected a mapping by the views {', '.join(self.card.view_names)}, got a list"
            )
        return {f"photograph {number}": photo for number, photo in enumerate(photos, 1)}

    def _assign(
        self, photos: Mapping[str, Photo], names: tuple[str, ...]
    ) -> tuple[tuple[str, ...], list[str]]:
        """Say which photograph fills each view, and what is missing."""
        unknown = [name for name in photos if name not in names]
        if unknown or not photos:
            raise ValueError(
                f"photos: expected at least one of the views {', '.join(self.card.view_names)}, "
                f"got {list(photos)}"
            )

        def nearest(name: str) -> str:
            distance = {given: abs(NOMINAL_YAWS[given] - NOMINAL_YAWS[name]) for given in photos}
            return min(distance, key=distance.__getitem__)

        sources = tuple(name if name in photos else nearest(name) for name in names)
        instead = "nothing" if self.card.network.view_flags else "the {} view"
        warnings = [
            f"no {name} view: {instead.format(source)} stands in for it, which makes the shape less certain"
            for name, source in zip(names, sources, strict=True)
            if name != source
        ]
        return sources, warnings

    def _crop(self, name: str, photo: Photo) -> Crop:
        nominal = _nominal_yaw(name, photo)
        yaw = nominal or 0.0
        if photo.points is None:
            height, width = photo.image.shape[:2]
            if (height, width) != (self.image_size, self.image_size):
                raise ValueError(
                    f"{name} view: expected points, or a picture already cropped to "
                    f"{self.image_size} x {self.image_size}, got {width} x {height} without points"
                )
            return nominal_crop(self.image_size, yaw)
        try:
            if nominal is None:  # nearly a profile is further from 0 than a view may be from its usual yaw
                yaw = fit_crop(photo.points, self.face_model, self.image_size).yaw
            return fit_crop(photo.points, self.face_model, self.image_size, yaw)
        except ValueError as error:
            raise ValueError(f"{name} view: {error}") from error

    def _mask(self, photo: Photo, crop: Crop) -> Tensor:
        """Return region labels [S, S] int64."""
        if photo.mask is None:
            return torch.zeros(crop.size, crop.size, dtype=torch.int64)
        return torch.from_numpy(crop.cut_mask(photo.mask.astype(np.uint8))).long()

    def _as_batch(self, images: Tensor, masks: Tensor, yaws: list[float], present: list[bool]) -> ViewBatch:
        """Make a batch of one sample from images [V, S, S, 3] uint8 and masks [V, S, S]."""
        n_views, size = masks.shape[:2]
        return ViewBatch(
            images=images.permute(0, 3, 1, 2)[None].float() / 255,
            masks=masks[None],
            weight_maps=torch.ones(1, n_views, size, size),
            landmarks_2d=torch.zeros(1, n_views, N_LANDMARKS, 2),
            landmarks_2d_weights=torch.zeros(1, n_views, N_LANDMARKS),
            landmarks_3d=torch.zeros(1, 101, 3),
            landmarks_3d_valid=torch.zeros(1, dtype=torch.bool),
            intrinsics=default_intrinsics(size).expand(1, n_views, 3, 3),
            view_yaws=torch.tensor([yaws]),
            view_present=torch.tensor([present]),
        )


def _doubts(name: str, photo: Photo, crop: Crop) -> list[str]:
    """Say what looks wrong about a photograph."""
    doubts = []
    nominal = _nominal_yaw(name, photo)
    if nominal and crop.yaw * np.sign(nominal) < -SWAPPED_YAW:
        side = "right" if crop.yaw > 0 else "left"
        doubts.append(f"{name} view: the nose points to the image's {side}; are left and right swapped?")
    if abs(crop.yaw) > MAX_YAW:
        doubts.append(f"{name} view: face at {np.degrees(abs(crop.yaw)):.0f} degrees, one eye is hidden")
    if crop.scale > MAX_ENLARGEMENT:
        doubts.append(f"{name} view: the face is small and was enlarged {crop.scale:.1f} times")
    return doubts


def _known_yaw(name: str, photo: Photo, crop: Crop) -> float:
    """Return what is known of a view's yaw in radians, NaN if nothing."""
    known = photo.points is not None or _nominal_yaw(name, photo) is not None
    return crop.yaw if known else float("nan")


def _nominal_yaw(name: str, photo: Photo) -> float | None:
    """Return a photograph's rough yaw in radians: as given, or as its view's name says; else None."""
    return NOMINAL_YAWS.get(name) if photo.yaw is None else photo.yaw


def _as_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    return np.asarray(np.round(image * 255), np.uint8)
