"""From a request's pictures to the bytes of its answer, without HTTP or Ray: a replica's work."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.avatar.build import build_avatar
from dfmvr.avatar.files import facts_of
from dfmvr.avatar.gltf import encode_glb
from dfmvr.avatar.head import Head, has_head, load_head
from dfmvr.data import storage
from dfmvr.data.preprocess.crop import five_points
from dfmvr.data.preprocess.detect import BYSTANDER_SHARE, PackageMissing
from dfmvr.data.preprocess.landmark import LandmarkFinder, build_finder, check_finder
from dfmvr.export import encode_mesh
from dfmvr.geometry.rotation import matrix_to_euler
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.weights import CARD_FILE, WEIGHTS_FILE, WeightsError
from dfmvr.predictor import NOT_REFINED, FaceNotFound, Photo, Predictor, PreparedViews
from dfmvr.reconstructor import decode_landmarks
from dfmvr.types import FRONT, FaceParams, Mesh, Reconstruction, ViewBatch
from serve import schemas
from serve.problems import Problem
from serve.settings import ServeSettings

NO_FINDER = "none"
WARM_UP_SEED = 0
WARM_UP_SIDE = 300


@dataclass(frozen=True, eq=False)
class Face:
    """A reconstructed face, whose mesh is decoded when somebody asks for it: JSON answers go without."""

    face_model: MorphableModel
    params: FaceParams
    intrinsics: torch.Tensor
    """[V, 3, 3] pixels."""
    landmarks_3d: torch.Tensor
    """[68, 3] mm."""
    landmarks_2d: torch.Tensor
    """[V, 68, 2] pixels of the crops."""
    refined: bool | None = None
    """Fitted to the pictures' landmarks, or not since none fit; None: nobody asked."""

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh in model space, with linear albedo as colours."""
        model, params = self.face_model, self.params
        with torch.inference_mode():
            vertices = model.vertices(params.identity, params.expression)
            return Mesh(vertices, model.triangles, model.albedo(params.albedo), model.uvs)


class Engine:
    """The model of a replica, and everything around it that costs time.

    Args:
        settings: of the endpoint.

    Raises:
        WeightsError: the model is missing, damaged, or not the one that `model_hash` names.
        PackageMissing: the finder that the settings name is not installed.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.predictor = _load_predictor(settings)
        self.finder_name = _finder_name(settings.landmarks)
        self._finders: SimpleQueue[LandmarkFinder] = SimpleQueue()  # each is used by one thread at a time
        for _ in range(max(1, int(settings.cpus)) if self.finder_name != NO_FINDER else 0):
            self._finders.put(build_finder(self.finder_name, BYSTANDER_SHARE, self.predictor.device))

    def locate(self, photos: dict[str, Photo]) -> dict[str, Photo]:
        """Find the faces of pictures that come without landmarks and are no crops.

        Raises:
            Problem: a picture shows no face or several, or nothing can find faces here.
        """
        unlocated = self.predictor.unlocated(photos)
        if not unlocated:
            return photos
        if self.finder_name == NO_FINDER:
            size = self.predictor.image_size
            raise Problem(
                422,
                f"{unlocated[0]} view: expected landmarks, or a crop of {size} x {size} px: "
                "faces are not looked for here",
                unlocated[0],
                "landmarks_missing",
            )
        finder = self._finders.get()
        try:
            return self.predictor.locate(photos, finder)
        except FaceNotFound as error:
            raise Problem(422, str(error), error.view, error.reason.replace(" ", "_")) from error
        finally:
            self._finders.put(finder)

    def prepare(self, photos: dict[str, Photo]) -> PreparedViews:
        """Crop the pictures as the network expects them.

        Raises:
            Problem: landmarks or a mask do not fit.
        """
        try:
            return self.predictor.prepare(photos)
        except ValueError as error:
            view = str(error).partition(" view:")[0]
            field = view if view in photos else ""
            raise Problem(422, str(error), field, "unusable_view") from error

    def predict(self, views: Sequence[PreparedViews]) -> list[Face]:
        """Compute several faces at once, those with as many views together."""
        faces: dict[int, Face] = {}
        for count in {item.batch.n_views for item in views}:
            places = [k for k, item in enumerate(views) if item.batch.n_views == count]
            faces.update(zip(places, self._predict([views[k] for k in places]), strict=True))
        return [faces[k] for k in range(len(views))]

    def _predict(self, views: Sequence[PreparedViews]) -> list[Face]:
        model = self.predictor.face_model
        batch = ViewBatch.concatenate([item.batch for item in views])
        params = self.predictor.predict_params(batch)
        intrinsics = batch.intrinsics.to(self.predictor.device)
        with torch.inference_mode():
            points_3d, points_2d = decode_landmarks(params, intrinsics, model)
        places = zip(intrinsics, points_3d, points_2d, strict=True)
        return [Face(model, params.sample(b), *of_sample) for b, of_sample in enumerate(places)]

    def refine(self, face: Face, views: PreparedViews) -> Face:
        """Fit a face to the landmarks of its pictures, where they have 68."""
        p = face.params
        kept = (p.identity, p.expression, p.albedo, p.light, p.rotation, p.translation)
        batched = FaceParams(*(values.unsqueeze(0) for values in kept))
        fitted = self.predictor.refine(views, batched)
        return dataclasses.replace(
            face,
            params=fitted.params,
            landmarks_3d=fitted.landmarks_3d,
            landmarks_2d=fitted.landmarks_2d,
            refined=NOT_REFINED not in fitted.warnings,
        )

    @property
    def animatable(self) -> bool:
        """Whether its face model can make animatable heads."""
        return has_head(self.predictor.face_model)

    @cached_property
    def head(self) -> Head:
        """What all animatable heads share; read when the first one is made."""
        with tempfile.TemporaryDirectory() as folder:
            return load_head(_fetch_face_model(self.settings, folder))

    def avatar_file(self, face: Face, photos: Mapping[str, Photo], views: PreparedViews) -> bytes:
        """Return the face as an animatable head (GLB), as `dfmvr avatar` writes it; this takes seconds."""
        seen = Reconstruction(face.mesh, face.params, face.landmarks_3d, face.landmarks_2d, face.intrinsics)
        avatar = build_avatar(self.head, photos, views, seen)
        return encode_glb(avatar, extras=facts_of(self.head, self.predictor.weights_hash))

    def mesh_file(self, face: Face, kind: str) -> bytes:
        """Return the face as a mesh file (glb, obj or ply)."""
        return encode_mesh(face.mesh, kind, extras=self.hashes)

    @property
    def hashes(self) -> dict[str, str]:
        """Of weights and face model."""
        return {
            "weights_hash": self.predictor.weights_hash,
            "face_model_hash": self.predictor.face_model.hash,
        }

    def answer(
        self, face: Face, views: PreparedViews, timings: dict[str, float]
    ) -> schemas.ReconstructionAnswer:
        """Return the face as the JSON answer holds it; `timings` in seconds."""
        params = face.params
        angles = torch.rad2deg(matrix_to_euler(params.rotation)).tolist()
        return schemas.ReconstructionAnswer(
            coefficients=schemas.Coefficients(
                identity=_numbers(params.identity),
                expression=_numbers(params.expression),
                albedo=_numbers(params.albedo),
            ),
            views=[
                schemas.View(
                    name=name,
                    source=views.sources[v],
                    pitch_degrees=angles[v][0],
                    yaw_degrees=angles[v][1],
                    roll_degrees=angles[v][2],
                    rotation=_numbers(params.rotation[v]),
                    translation_mm=_numbers(params.translation[v]),
                    light=_numbers(params.light[v]),
                    landmarks_2d=_numbers(
                        views.crops[v].points_to_photo(face.landmarks_2d[v].cpu().double().numpy())
                    ),
                )
                for v, name in enumerate(views.names)
            ],
            landmarks_3d=_numbers(face.landmarks_3d),
            sizes=_sizes(face),
            timings_ms={stage: round(1000 * seconds, 3) for stage, seconds in timings.items()},
            refined=bool(face.refined),
            warnings=[*views.warnings, *([NOT_REFINED] if face.refined is False else [])],
            **self.hashes,
        )

    def describe(self, version: str, formats: Sequence[str]) -> schemas.ModelAnswer:
        """Say what the endpoint computes with."""
        card, face_model = self.predictor.card, self.predictor.face_model
        return schemas.ModelAnswer(
            licence=card.licence,
            run_id=card.run_id,
            step=card.step,
            image_size=card.image_size,
            views=list(card.view_names),
            landmarks=self.finder_name,
            vertices=len(face_model.mean_shape),
            triangles=len(face_model.triangles),
            expression_names=list(face_model.expression_names),
            formats=list(formats),
            version=version,
            **self.hashes,
        )

    def check(self) -> None:
        """Compute a face of noise.

        Raises:
            RuntimeError: the result is not finite.
        """
        size = self.predictor.image_size
        noise = np.random.default_rng(WARM_UP_SEED).integers(0, 256, (size, size, 3), np.uint8)
        photos = {name: Photo(noise) for name in self.predictor.card.view_names}
        face = self.predict([self.prepare(photos)])[0]
        if not bool(torch.isfinite(face.mesh.vertices).all()):
            raise RuntimeError("the model computes vertices that are not finite")

    def _mean_points(self) -> NDArray[np.float64]:
        """Return the mean face's landmarks [68, 2] in the middle of a picture, a pixel to a millimetre."""
        model = self.predictor.face_model
        points = model.mean_shape[model.landmarks_68, :2].cpu().double().numpy()
        return points * (1, -1) + WARM_UP_SIDE / 2

    def warm_up(self) -> None:
        """Do once what the first request should not wait for.

        Raises:
            RuntimeError: as `check`.
        """
        self.check()
        black = np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)
        with suppress(Problem):  # it shows no face
            self.locate({FRONT: Photo(black)})
        views = self.prepare({FRONT: Photo(black, self._mean_points())})
        self.refine(self.predict([views])[0], views)  # torch loads much of itself for the first Jacobian


def _load_predictor(settings: ServeSettings) -> Predictor:
    device = settings.device
    if device == "auto":
        device = "cuda" if settings.gpus and torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model = _fetch(settings.model, [CARD_FILE, WEIGHTS_FILE], folder) if settings.model else None
        predictor = Predictor.load(model, _fetch_face_model(settings, folder), device)
    if settings.model_hash not in ("", predictor.weights_hash):
        raise WeightsError(
            f"model: expected weights of SHA-256 {settings.model_hash}, "
            f"got {predictor.weights_hash} in {settings.model or 'the shipped model'}"
        )
    return predictor


def _fetch_face_model(settings: ServeSettings, folder: str) -> Path | None:
    """Return a copy of the face model's file in a local folder; None where it is the shipped one."""
    if not settings.face_model:
        return None
    parent, _, name = settings.face_model.rpartition("/")
    return _fetch(parent or ".", [name], folder) / name


def _fetch(uri: str, names: Sequence[str], folder: str) -> Path:
    """Copy files of a folder, local or s3://, into a local one."""
    for name in names:
        try:
            (Path(folder) / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
        except FileNotFoundError as error:
            raise WeightsError(f"{storage.join(uri, name)}: no such file") from error
    return Path(folder)


def _finder_name(wanted: str) -> str:
    """Return who finds faces; auto takes dlib where it is installed, and nobody elsewhere."""
    if wanted == NO_FINDER:
        return NO_FINDER
    try:
        check_finder(wanted)
    except PackageMissing:
        if wanted != "auto":
            raise
        return NO_FINDER
    return "dlib" if wanted == "auto" else wanted


def _numbers(values: Any) -> Any:
    """Return nested lists of numbers, rounded to what float32 can tell apart."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)
    return np.round(array, 5).tolist()


def _sizes(face: Face) -> schemas.Sizes:
    five = five_points(face.landmarks_3d).cpu().double().numpy()
    points = face.landmarks_3d.cpu().double().numpy()

    def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return round(float(np.linalg.norm(a - b)), 2)

    return schemas.Sizes(
        eye_centres_mm=distance(five[0], five[1]),
        eye_outer_corners_mm=distance(points[36], points[45]),
        nose_length_mm=distance(points[27], points[30]),
        mouth_width_mm=distance(points[48], points[54]),
        face_width_mm=distance(points[0], points[16]),
    )
