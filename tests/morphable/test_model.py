import time

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dfmvr.morphable.io import DEFAULT_MODEL, MODEL_FORMAT, read_face_file
from dfmvr.morphable.landmarks import ALIGN_7_IN_68, mirror_order
from dfmvr.morphable.model import FaceModelSettings, MorphableModel, base_mesh
from dfmvr.morphable.topology import part_topology
from dfmvr.types import REGION_NAMES

FLIP = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="session")
def arrays():
    return read_face_file(DEFAULT_MODEL, MODEL_FORMAT)


@pytest.fixture(scope="session")
def models(arrays):
    return {
        (level, part): MorphableModel(arrays, level, part)
        for level, part in ((1, "face"), (2, "face"), (1, "head"), (2, "head"))
    }


@pytest.fixture(scope="session")
def face(models):
    return models[1, "face"]


def border_loop(model, *, longest):
    """Return the vertices of the face's outer border, or of every other border, as neighbour lists."""
    edges = model.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
    sides, sharing = edges.unique(dim=0, return_counts=True)
    a, b = sides[sharing == 1].numpy().T
    n = len(model.mean_shape)
    _, loop = connected_components(coo_matrix((np.ones(len(a)), (a, b)), (n, n)), directed=False)
    chosen = (loop[a] == np.bincount(loop).argmax()) == longest
    neighbours: dict[int, list[int]] = {}
    for one, other in zip(a[chosen].tolist(), b[chosen].tolist(), strict=True):
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    return neighbours


@pytest.mark.parametrize(("level", "low", "high"), [(1, 8_000, 11_000), (2, 33_000, 44_000)])
def test_sizes(models, level, low, high):
    model = models[level, "face"]
    n = len(model.mean_shape)
    assert low < n < high
    assert model.identity_basis.shape == (80, n, 3)
    assert model.expression_basis.shape == (64, n, 3)
    assert model.albedo_basis.shape == (80, n, 3)
    assert model.labels.shape == model.mirror.shape == model.head_ids.shape == (n,)
    assert model.uvs.shape == (n, 2)
    assert len(set(model.expression_names)) == 64
    assert model.triangles.max() == n - 1
    assert not list(model.parameters())
    assert not model.state_dict()


def test_units_and_axes(face):
    """Millimetres; x to the subject's left, y up, z out of the face; the origin amid the face."""
    right_eye, left_eye, nose, mouth = (face.mean_shape[face.landmarks_68[k]] for k in (36, 45, 30, 57))
    assert 80 < left_eye[0] - right_eye[0] < 100
    assert nose[2] > left_eye[2] + 20
    assert mouth[1] < nose[1] < left_eye[1]
    assert face.mean_shape.mean(0).abs().max() < 20
    blink = face.expression_basis[face.expression_names.index("eyeBlinkLeft")]
    assert face.mean_shape[blink.norm(dim=1).argmax(), 0] > 0


@pytest.mark.parametrize("key", [(1, "face"), (2, "face"), (1, "head"), (2, "head")])
def test_mirror_map_is_exact(models, key):
    model = models[key]
    torch.testing.assert_close(model.mean_shape[model.mirror] * FLIP, model.mean_shape, atol=2e-4, rtol=0)
    assert (model.mirror[model.mirror] == torch.arange(len(model.mirror))).all()
    swap = torch.tensor([0, 1, 3, 2, 5, 4, 6, 7, 8, 9])
    assert (swap[model.labels[model.mirror]] == model.labels).all()


def test_modes_are_even_or_odd(face):
    mirrored = face.identity_basis[:, face.mirror] * FLIP
    even = (mirrored - face.identity_basis).abs().amax((1, 2)) < 0.01
    odd = (mirrored + face.identity_basis).abs().amax((1, 2)) < 0.01
    assert (even ^ odd).all()
    assert 3 < odd.sum() < 20


def test_levels_agree(models):
    """The same coefficients give the same surface at both levels."""
    coefficients = 0.7 * torch.randn(80, generator=torch.Generator().manual_seed(0)), torch.full((64,), 0.1)
    coarse, fine = (models[level, "face"].vertices(*coefficients) for level in (1, 2))
    distance, _ = cKDTree(fine.numpy()).query(coarse.numpy())
    assert np.percentile(distance, 95) < 0.5
    landmarks = coarse[models[1, "face"].landmarks_68] - fine[models[2, "face"].landmarks_68]
    assert landmarks.norm(dim=1).max() < 0.8


@pytest.mark.parametrize("level", [1, 2])
def test_face_is_a_part_of_the_head(models, level):
    face, head = models[level, "face"], models[level, "head"]
    on_head = head.mean_shape[face.head_ids]
    moved = (on_head - face.mean_shape).norm(dim=1)
    outer = torch.tensor(list(border_loop(face, longest=True)))
    border = torch.cat([outer, torch.tensor(list(border_loop(face, longest=False)))])
    inner = torch.ones(len(moved), dtype=torch.bool)
    inner[border] = False
    assert moved[inner].max() == 0
    assert moved[outer].max() < 14
    assert (face.labels == head.labels[face.head_ids]).all()
    for name in ("landmarks_68", "landmarks_101", "landmarks_7"):
        ids = getattr(face, name)
        assert (face.head_ids[ids] == getattr(head, name)).all()
        assert not torch.isin(ids, border).any(), f"{name} touch the border, which is moved"


def test_border_of_the_face_is_smooth(models):
    """The outer border turns gently: no saw teeth."""
    model = models[2, "face"]
    turns = []
    for vertex, around in border_loop(model, longest=True).items():
        a, b = (model.mean_shape[around] - model.mean_shape[vertex]).unbind()
        turns.append(torch.arccos((-(a @ b) / a.norm() / b.norm()).clamp(-1, 1)))
    assert len(turns) > 200
    degrees = torch.stack(turns).rad2deg()
    assert degrees.quantile(0.98) < 15
    assert degrees.max() < 40


def test_border_of_the_face_lies_on_the_crop_line(arrays, models):
    field = torch.from_numpy(arrays["face_field"])
    for level in (1, 2):
        model = models[level, "face"]
        matrix = part_topology(base_mesh(arrays), level, "face").matrix
        at_border = torch.from_numpy(matrix @ field.numpy())[list(border_loop(model, longest=True))]
        assert at_border.abs().mean() < 0.5
        assert at_border.abs().max() < 2.5


def test_one_cannot_look_out_through_the_throat(models):
    """Every border of the skin but the outer one is drawn shut."""
    for key in ((1, "face"), (2, "face")):
        model = models[key]
        holes = [v for v in border_loop(model, longest=False) if model.labels[v] in (1, 7)]
        throat = [v for v in holes if model.mean_shape[v, 0].abs() < 1 and model.mean_shape[v, 2] < -25]
        assert len(throat) > 20
        assert model.mean_shape[throat].std(0).max() < 1e-3


def test_labels_cover_every_region(models):
    for key in ((1, "face"), (2, "face")):
        counts = models[key].labels.bincount(minlength=len(REGION_NAMES))
        assert counts[0] == 0
        assert (counts[1:] > 20).all()
    assert models[1, "head"].labels.bincount()[0] > 5_000


def test_labels_sit_where_their_landmarks_are(face):
    names = [REGION_NAMES[i] for i in face.labels[face.landmarks_68]]
    assert set(names[27:31]) | {names[33]} == {"nose"}
    assert {names[51], names[62]} == {"upper_lip"}
    assert {names[57], names[66]} == {"lower_lip"}
    nearest = torch.cdist(face.mean_shape[face.landmarks_68[17:27]], face.mean_shape[face.labels == 2]).amin(
        1
    )
    assert nearest[1:4].max() < 4


def test_landmark_sets(face):
    assert face.landmarks_68.unique().numel() == 68
    assert face.landmarks_101.unique().numel() == 99  # each pupil stands twice, as in Pixel-Face
    assert (face.landmarks_7 == face.landmarks_68[list(ALIGN_7_IN_68)]).all()
    assert (face.landmarks_101[face.align_7_in_101] == face.landmarks_7).all()
    assert sorted(mirror_order(face.landmarks_68.numpy(), face.mirror.numpy())) == list(range(68))
    with pytest.raises(ValueError, match="mirror image of number 4 in the set"):
        mirror_order(
            face.landmarks_101.numpy(), face.mirror.numpy()
        )  # the five dropped points are of one side
    jaw = face.mean_shape[face.landmarks_68[:17]]
    assert (jaw[1:, 0] > jaw[:-1, 0]).all()
    assert jaw[:, 1].argmin() == 8


def test_vertices_and_batches(face):
    generator = torch.Generator().manual_seed(1)
    identity, expression = (
        torch.randn(2, 3, 80, generator=generator),
        torch.rand(2, 3, 64, generator=generator),
    )
    vertices = face.vertices(identity, expression)
    assert vertices.shape == (2, 3, *face.mean_shape.shape)
    torch.testing.assert_close(vertices[1, 2], face.vertices(identity[1, 2], expression[1, 2]))
    torch.testing.assert_close(face.vertices(torch.zeros(80), torch.zeros(64)), face.mean_shape)


def test_a_wrong_number_of_coefficients_is_named(face):
    with pytest.raises(ValueError, match=r"identity: expected \[\*L, 80\] coefficients, got \[2, 79\]"):
        face.vertices(torch.zeros(2, 79), torch.zeros(2, 64))
    with pytest.raises(ValueError, match=r"expression: expected \[\*L, 64\] coefficients, got \[80\]"):
        face.vertices(torch.zeros(80), torch.zeros(80))
    with pytest.raises(ValueError, match=r"albedo: expected \[\*L, 80\] coefficients, got \[\]"):
        face.albedo(torch.tensor(1.0))


def test_albedo_stays_in_range(face):
    albedo = face.albedo(3 * torch.randn(4, 80, generator=torch.Generator().manual_seed(2)))
    assert albedo.shape == (4, *face.mean_shape.shape)
    assert albedo.min() >= 0
    assert albedo.max() <= 1
    mean = face.albedo(torch.zeros(80))
    assert ((mean > 0) & (mean < 1)).float().mean() > 0.99


def test_eyes_open_and_lips_closed_at_rest(models):
    model = models[2, "face"]
    upper, lower = (model.mean_shape[model.landmarks_68[k], 1] for k in (44, 46))
    assert upper - lower > 6
    gap = (
        model.mean_shape[model.landmarks_68[61:64], 1] - model.mean_shape[model.landmarks_68[[67, 66, 65]], 1]
    )
    assert gap.max() < 0.05


def test_expression_prior(face):
    assert face.expression_mean.min() >= 0
    assert face.expression_mean.max() < 0.3
    assert torch.linalg.eigvalsh(face.expression_precision).min() > 0


def test_load_is_quick_and_checks_its_arguments():
    start = time.process_time()
    MorphableModel.load(level=2)
    assert time.process_time() - start < 2
    with pytest.raises(ValueError, match="level: expected one of"):
        MorphableModel.load(level=0)
    with pytest.raises(ValueError, match="part: expected one of"):
        MorphableModel.load(part="body")
    with pytest.raises(ValueError, match=r"face_model\.level: expected one of"):
        FaceModelSettings(level=3)
