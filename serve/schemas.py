"""The JSON that the endpoint speaks, as pydantic models: they are its OpenAPI document too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

Vector = list[float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class View(_Strict):
    """One view of a face: how the camera saw it."""

    name: str = Field(
        examples=["front"], description="left, front or right; left shows the subject's left side"
    )
    source: str = Field(
        description="the picture that filled this view: another one's name where it was missing"
    )
    yaw_degrees: float = Field(description="negative where the nose points to the picture's left")
    pitch_degrees: float = Field(description="positive where the nose points down")
    roll_degrees: float
    rotation: list[Vector] = Field(description="[3][3] model space to the view's axes (x right, y up)")
    translation_mm: Vector = Field(description="[3] in the view's axes; 0: on the optical axis")
    light: list[Vector] = Field(description="[9][3] spherical-harmonic coefficients of RGB light")
    landmarks_2d: list[Vector] = Field(description="[68][2] pixels of the picture that was sent, iBUG order")


class Coefficients(_Strict):
    """The face model's coefficients."""

    identity: Vector = Field(description="[80] standard deviations")
    expression: Vector = Field(description="[64] activations")
    albedo: Vector = Field(description="[80] standard deviations")


class Sizes(_Strict):
    """Distances on the face in millimetres; a face's true size is a guess unless the camera is known."""

    eye_centres_mm: float = Field(description="between the middles of the eyes' corners (near the pupils)")
    eye_outer_corners_mm: float
    nose_length_mm: float = Field(description="from the bridge between the eyes to the tip")
    mouth_width_mm: float
    face_width_mm: float = Field(description="between the fronts of the ears (landmarks 0 and 16)")


class ReconstructionAnswer(_Strict):
    """A reconstructed face."""

    coefficients: Coefficients
    views: list[View]
    landmarks_3d: list[Vector] = Field(description="[68][3] mm, model space")
    sizes: Sizes
    timings_ms: dict[str, float] = Field(
        examples=[{"read": 3.1, "find": 80.2, "prepare": 6.0, "predict": 24.8, "refine": 150.2}]
    )
    refined: bool = Field(
        False,
        description="fitted to the landmarks of the pictures; a warning says where that was asked in vain",
    )
    warnings: list[str] = Field(
        examples=[["no left view: nothing stands in for it, which makes the shape less certain"]]
    )
    weights_hash: str
    face_model_hash: str


class ProblemBody(_Strict):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(examples=["urn:dfmvr:problem:no_face"])
    title: str = Field(examples=["Cannot be used"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["front view: expected one face, found none"])
    field: str = Field("", examples=["front"], description="the field that is to blame")


class BatchItem(_Strict):
    """What became of one face of a batch: one of the two is there."""

    index: int
    status: int
    reconstruction: ReconstructionAnswer | None = None
    problem: ProblemBody | None = None


class BatchAnswer(_Strict):
    """What became of the faces of a batch, in order."""

    items: list[BatchItem]


class ModelAnswer(_Strict):
    """What the endpoint computes with."""

    weights_hash: str
    face_model_hash: str
    licence: str
    run_id: str
    step: int
    image_size: int = Field(
        description="side of the network's views; square pictures of it are taken as crops"
    )
    views: list[str]
    landmarks: str = Field(description="who finds faces in pictures without landmarks, or none")
    vertices: int
    triangles: int
    expression_names: list[str]
    formats: list[str]
    version: str


class Status(_Strict):
    """Whether the endpoint lives, or is ready."""

    status: str = Field(examples=["ok"])
