"""From the photographs of a data set to samples: read, find landmarks, crop, parse, assemble.

Every stage takes many views at once and leaves aside those that an earlier one rejected. What yields no
sample is told picture by picture, with the reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmvr.data import storage
from dfmvr.data.datasets.records import Picture, Record
from dfmvr.data.manifest import SPLITS
from dfmvr.data.preprocess.crop import fit_crop
from dfmvr.data.preprocess.detect import Picture8, PictureRejected, Reason
from dfmvr.data.preprocess.landmark import (
    LandmarkFinder,
    Landmarks,
    build_finder,
    landmark_weights,
    parse_landmarks,
)
from dfmvr.data.preprocess.parse import build_parser
from dfmvr.data.preprocess.read_picture import (
    PictureError,
    read_picture,
    turn_picture,
    undistort,
    undistort_points,
)
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.preprocess.views import (
    CroppedView,
    crop_intrinsics,
    measure_sharpness,
    view_disagreement,
)
from dfmvr.data.sample import Sample
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import N_LANDMARKS, VIEW_NAMES

Array = NDArray[Any]

NOMINAL_YAWS = MappingProxyType(dict(zip(VIEW_NAMES, np.radians([-45.0, 0.0, 45.0]).tolist(), strict=True)))
"""Radians: where a view usually lies, for pictures that do not say."""
SWAPPED_YAW = math.radians(10.0)
"""A side view whose nose points this far to the wrong side is another view."""


@dataclass(frozen=True)
class Reject:
    """A picture that yields no sample."""

    uri: str
    subject_id: str
    expression_id: str
    view: str
    reason: str
    """A few words: no face, several faces, blurred, unreadable, missing view, landmark disagreement, ..."""
    detail: str


@dataclass(frozen=True, eq=False)
class Loaded:
    """A photograph's pixels, upright and undistorted."""

    image: Picture8
    """[H, W, 3]."""
    landmarks: Landmarks | None
    """Where they are given."""
    intrinsics: Array | None
    """[3, 3] pixels, where they are known."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a record: a sample, or the reasons why there is none."""

    sample: Sample | None
    rejects: tuple[Reject, ...] = ()


class Preprocessor:
    """Makes samples of records; built once a process, as its networks take seconds to load.

    Args:
        settings: backends, crops, thresholds.
        device: for networks; None takes the GPU where there is one.

    Raises:
        PackageMissing: the landmark backend is not installed, or its weights are missing.
        WeightsError: the parser's weights are missing or damaged.
    """

    def __init__(self, settings: PreprocessSettings, device: str | None = None) -> None:
        self.settings = settings
        self._device = device
        self._finder: LandmarkFinder | None = None
        if settings.landmarks in ("dlib", "face_alignment"):
            self._finder = build_finder(settings.landmarks, settings.bystander_share, device)
        self._parser = build_parser(settings, device)
        self._face_model = MorphableModel.load(level=1)
        mean, ids = self._face_model.mean_shape, self._face_model.landmarks_68
        self._normals = vertex_normals(mean, self._face_model.triangles)[ids].numpy()

    def __call__(self, records: Sequence[Record]) -> list[Outcome]:
        """Return what becomes of each record.

        Raises:
            StorageError: a picture's storage does not answer (the picture may be good).
        """
        shots = [
            (index, name, record.pictures[name])
            for index, record in enumerate(records)
            for name in self.settings.views
            if name in record.pictures
        ]
        pictures = [picture for _, _, picture in shots]
        loaded = [self.read(picture) for picture in pictures]
        landmarks = self.find(loaded)
        yaws = [_nominal_yaw(name, picture) for _, name, picture in shots]
        views = [self.crop(*item) for item in zip(loaded, landmarks, yaws, strict=True)]
        masks = self.parse(views)
        found: list[dict[str, CroppedView | PictureRejected]] = [{} for _ in records]
        regions: list[dict[str, Array]] = [{} for _ in records]
        for (index, name, _), view, mask in zip(shots, views, masks, strict=True):
            found[index][name] = view
            regions[index][name] = mask
        return [self.assemble(*item) for item in zip(records, found, regions, strict=True)]

    def read(self, picture: Picture) -> Loaded | PictureRejected:
        """Read a photograph, bring it upright and take its lens's distortion out."""
        try:
            image = turn_picture(read_picture(picture.uri), picture.turn)
            points = self._given_points(picture)
        except (FileNotFoundError, PictureError) as error:
            return PictureRejected("unreadable", str(error))
        except PictureRejected as rejected:
            return rejected
        if picture.distortion is not None and picture.intrinsics is not None:
            image = undistort(image, picture.intrinsics, picture.distortion)
            if points is not None:
                points = undistort_points(points, picture.intrinsics, picture.distortion)
        given = None if points is None else Landmarks(points, np.ones(N_LANDMARKS, np.float32))
        return Loaded(image, given, picture.intrinsics)

    def find(self, loaded: Sequence[Loaded | PictureRejected]) -> list[Landmarks | PictureRejected]:
        """Return each picture's landmarks: those given, or those that the backend finds.

        Raises:
            PackageMissing: landmarks must be found, and `auto` finds no backend.
        """
        results: list[Landmarks | PictureRejected | None] = [
            item.landmarks if isinstance(item, Loaded) else item for item in loaded
        ]
        wanted = [item for item in loaded if isinstance(item, Loaded) and item.landmarks is None]
        if wanted and self._finder is None:  # auto: as late as this, as records may bring all landmarks
            self._finder = build_finder(self.settings.landmarks, self.settings.bystander_share, self._device)
        found = iter(self._finder([item.image for item in wanted]) if self._finder and wanted else [])
        return [next(found) if result is None else result for result in results]

    def crop(
        self, loaded: Loaded | PictureRejected, landmarks: Landmarks | PictureRejected, nominal_yaw: float
    ) -> CroppedView | PictureRejected:
        """Cut the face out of its photograph, upright, and judge whether it is sharp."""
        if isinstance(loaded, PictureRejected):
            return loaded
        if isinstance(landmarks, PictureRejected):
            return landmarks
        size = self.settings.image_size
        try:
            crop = fit_crop(landmarks.points, self._face_model, size, nominal_yaw)
        except ValueError as error:
            return PictureRejected("no face", str(error))
        image = crop.cut(loaded.image)
        sharpness, least = measure_sharpness(image), self.settings.min_sharpness
        if sharpness < least:
            return PictureRejected(
                "blurred", f"expected a sharpness of at least {least:g}, got {sharpness:.1f}"
            )
        if loaded.intrinsics is None:
            intrinsics = default_intrinsics(size).numpy()
        else:
            intrinsics = crop_intrinsics(loaded.intrinsics, crop)
        return CroppedView(
            image=image,
            landmarks=crop.points_to_crop(landmarks.points).astype(np.float32),
            weights=landmark_weights(self._normals, crop.rotation, landmarks.weights),
            intrinsics=intrinsics.astype(np.float32),
            crop=crop,
        )

    def parse(self, views: Sequence[CroppedView | PictureRejected]) -> list[Array]:
        """Return each view's region labels [S, S]; zeros for a rejected one."""
        good = [view for view in views if isinstance(view, CroppedView)]
        size = self.settings.image_size
        labels: list[Array] = []
        if good:
            images, points = [view.image for view in good], [view.landmarks for view in good]
            labels = list(self._parser(np.stack(images), np.stack(points)))
        rest = iter(labels)
        return [
            next(rest) if isinstance(view, CroppedView) else np.zeros((size, size), np.uint8)
            for view in views
        ]

    def assemble(
        self, record: Record, views: Mapping[str, CroppedView | PictureRejected], masks: Mapping[str, Array]
    ) -> Outcome:
        """Put a record's views together, if all are good and show one face."""
        bad: dict[str, PictureRejected] = {
            name: view for name, view in views.items() if isinstance(view, PictureRejected)
        }
        absent = [name for name in self.settings.views if name not in views]
        good = {name: view for name, view in views.items() if isinstance(view, CroppedView)}
        if bad or absent:
            causes = [f"no {name} view" for name in absent]
            causes += [f"{name} view: {rejected.reason}" for name, rejected in bad.items()]
            without = PictureRejected("missing view", f"its record cannot be used: {', '.join(causes)}")
            return _rejected(record, bad | dict.fromkeys(good, without))
        reason = self._disagreement(good)
        if reason:
            rejected = PictureRejected("landmark disagreement", reason)
            return _rejected(record, dict.fromkeys(good, rejected))
        ordered = [good[name] for name in self.settings.views]
        return Outcome(_sample(record, self.settings.views, ordered, [masks[n] for n in self.settings.views]))

    def _given_points(self, picture: Picture) -> Array | None:
        """Return landmarks [68, 2] that come with a picture, where the settings want those.

        Raises:
            PictureRejected: none come, and none may be looked for; or what comes is damaged.
        """
        if self.settings.landmarks not in ("auto", "given"):
            return None
        points = picture.landmarks
        if points is None and self.settings.landmarks == "given":
            beside = f"{picture.uri.rpartition('.')[0]}.json"
            try:
                points = parse_landmarks(storage.read_bytes(beside), beside)
            except FileNotFoundError:
                raise PictureRejected(
                    "unreadable", f"expected landmarks in {beside}, found no such file"
                ) from None
            except ValueError as error:
                raise PictureRejected("unreadable", str(error)) from error
        if points is not None and (points.shape != (N_LANDMARKS, 2) or not np.isfinite(points).all()):
            raise PictureRejected(
                "unreadable", f"landmarks: expected finite [{N_LANDMARKS}, 2], got {list(points.shape)}"
            )
        return points

    def _disagreement(self, views: Mapping[str, CroppedView]) -> str:
        """Say why the views cannot show one face at one moment; empty if they can."""
        for name, view in views.items():
            nominal = NOMINAL_YAWS[name]
            if nominal and view.crop.yaw * np.sign(nominal) < -SWAPPED_YAW:
                side = "right" if view.crop.yaw > 0 else "left"
                return f"{name} view: the nose points to the image's {side}; are left and right swapped?"
        distance, most = view_disagreement(list(views.values())), self.settings.max_disagreement_mm
        if distance > most:
            return f"expected views of one rigid face to {most:g} mm, got {distance:.1f} mm"
        return ""


def subject_split(subject_id: str, shares: Sequence[float]) -> str:
    """Return the split that a subject belongs to, whatever others there are.

    Args:
        subject_id: as the data set names the subject.
        shares: of the subjects in train, validation and test.
    """
    digest = hashlib.sha256(subject_id.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return SPLITS[int(place >= shares[0]) + int(place >= shares[0] + shares[1])]


def _nominal_yaw(name: str, picture: Picture) -> float:
    return NOMINAL_YAWS[name] if math.isnan(picture.yaw) else picture.yaw


def _rejected(record: Record, reasons: Mapping[str, PictureRejected]) -> Outcome:
    """Return why a record's pictures yield no sample; a record without pictures is told as one."""
    rejects = [
        _reject(record, name, record.pictures[name].uri, error.reason, error.detail)
        for name, error in reasons.items()
    ]
    if not rejects:
        rejects = [_reject(record, "", "", "missing view", "none of the views that are wanted")]
    return Outcome(None, tuple(rejects))


def _reject(record: Record, view: str, uri: str, reason: Reason, detail: str) -> Reject:
    return Reject(uri, record.subject_id, record.expression_id, view, reason, detail)


def _sample(
    record: Record, names: tuple[str, ...], views: Sequence[CroppedView], masks: Sequence[Array]
) -> Sample:
    yaws = [record.pictures[name].yaw for name in names]
    measured = [view.crop.yaw if math.isnan(yaw) else yaw for view, yaw in zip(views, yaws, strict=True)]
    return Sample(
        sample_id=f"{record.subject_id}-{record.expression_id}",
        subject_id=record.subject_id,
        expression_id=record.expression_id,
        view_names=names,
        view_yaws=np.array(measured, np.float32),
        images=np.stack([view.image for view in views]),
        masks=np.stack(masks),
        landmarks_2d=np.stack([view.landmarks for view in views]),
        landmarks_2d_weights=np.stack([view.weights for view in views]),
        intrinsics=np.stack([view.intrinsics for view in views]),
        landmarks_3d=_as(np.float32, record.landmarks_3d),
        scan_vertices=_as(np.float32, record.scan_vertices),
        scan_triangles=_as(np.int32, record.scan_triangles),
        scan_landmarks_7=_as(np.float32, record.scan_landmarks_7),
    )


def _as(dtype: type[np.generic], array: Array | None) -> Array | None:
    return None if array is None else np.asarray(array, dtype)
