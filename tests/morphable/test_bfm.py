"""The Basel Face Model's importer, on a small file of the same layout (the true one may not be passed on)."""

import json

import cv2
import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from dfmvr.cli import main
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.lighting import linear_to_srgb
from dfmvr.morphable.bfm import LICENCE, import_bfm, landmarks_101, region_labels
from dfmvr.morphable.io import DEFAULT_MODEL, FIXED_MODEL_FORMAT, FaceFileError, read_face_file
from dfmvr.morphable.landmarks import ALIGN_7_IN_68
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, save_model
from dfmvr.reconstructor import Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES, VIEW_NAMES, ViewBatch

COLUMNS, ROWS = 41, 51
OFFSET = np.array([3.0, -20.0, 40.0])
"""mm that the file's shape is off its centre."""


@pytest.fixture(scope="module")
def shipped():
    return MorphableModel.load()


@pytest.fixture(scope="module")
def fields(shipped):
    """A face of one sheet, [N] = 41 x 51, with the 68 landmarks where the shipped model has them."""
    rng = np.random.default_rng(0)
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(-80, 80, COLUMNS), np.linspace(90, -90, ROWS)))
    tip = np.exp(-((x / 12) ** 2) - ((y + 8) / 15) ** 2)
    shape = np.stack([x, y, 40 - x**2 / 120 - y**2 / 300 + 30 * tip], axis=1)
    marks = shipped.mean_shape[shipped.landmarks_68].numpy()[:, None, :2]
    keypoints = ((marks - shape[:, :2]) ** 2).sum(-1).argmin(1)
    a = (np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS - 1)).ravel()
    b, c, d = a + COLUMNS, a + COLUMNS + 1, a + 1
    size = shape.size
    return {
        "meanshape": ((shape + OFFSET) / 100).reshape(1, -1).astype(np.float32),
        "meantex": rng.uniform(80, 160, (1, size)).astype(np.float32),
        "idBase": (0.02 * rng.standard_normal((size, 80))).astype(np.float32),
        "exBase": (0.01 * rng.standard_normal((size, 64))).astype(np.float32),
        "texBase": (5 * rng.standard_normal((size, 80))).astype(np.float32),
        "tri": (np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]) + 1).astype(np.float64),
        "keypoints": (keypoints[None] + 1).astype(np.int32),
        "point_buf": np.ones((len(shape), 8)),
        "skinmask": np.ones((1, len(shape))),
    }


@pytest.fixture(scope="module")
def imported(fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bfm")
    savemat(folder / "BFM_model_front.mat", fields)
    return folder / "bfm.npz", import_bfm(folder / "BFM_model_front.mat", folder / "bfm.npz")


@pytest.fixture(scope="module")
def model(imported):
    return MorphableModel.load(imported[0])


def test_shape_is_in_mm_and_centred(model, fields):
    shape = 100 * fields["meanshape"].reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(model.mean_shape.numpy(), shape - shape.mean(0), atol=1e-4)
    right, left = model.mean_shape[model.landmarks_68[[36, 45]]]
    assert 80 < left[0] - right[0] < 100


def test_indices_count_from_zero(model, fields):
    assert model.triangles.min() == 0
    assert model.triangles.max() == len(model.mean_shape) - 1
    np.testing.assert_array_equal(model.landmarks_68.numpy(), fields["keypoints"].ravel() - 1)


@pytest.mark.parametrize("turned", [False, True])
def test_triangles_are_counter_clockwise_seen_from_outside(fields, tmp_path, turned):
    tri = fields["tri"][:, ::-1] if turned else fields["tri"]
    savemat(tmp_path / "a.mat", {**fields, "tri": tri})
    import_bfm(tmp_path / "a.mat", tmp_path / "a.npz")
    model = MorphableModel.load(tmp_path / "a.npz")
    a, b, c = model.mean_shape[model.triangles].unbind(1)
    assert (torch.cross(b - a, c - a, dim=1)[:, 2] > 0).all()


def test_a_coefficient_is_a_standard_deviation(model, fields):
    for name, basis in (("idBase", model.identity_basis), ("exBase", model.expression_basis)):
        for mode in (0, 63):
            expected = 100 * fields[name][:, mode].reshape(-1, 3)
            np.testing.assert_allclose(basis[mode].numpy(), expected, atol=2e-4)
    moved = model.vertices(torch.eye(80)[5], torch.zeros(64)) - model.mean_shape
    np.testing.assert_allclose(moved.numpy(), 100 * fields["idBase"][:, 5].reshape(-1, 3), atol=2e-4)
    assert model.identity_variance.sum() == pytest.approx(1)


def test_albedo_is_linear_and_follows_the_texture(model, fields):
    """Up to the bend of the transfer curve: about 2 of 255 for steps of 5 to 20."""
    mean, basis = fields["meantex"].reshape(-1, 3), fields["texBase"].T.reshape(80, -1, 3)
    np.testing.assert_allclose(255 * linear_to_srgb(model.mean_albedo).numpy(), mean, atol=1e-3)
    for mode in (0, 79):
        shown = 255 * linear_to_srgb(model.albedo(torch.eye(80)[mode])).numpy()
        np.testing.assert_allclose(shown, mean + basis[mode], atol=2.5)


def test_expressions_are_standard_normal(model):
    assert model.expression_names[:2] == ("bfm_00", "bfm_01")
    assert model.expression_mean.abs().max() == 0
    torch.testing.assert_close(model.expression_precision, torch.eye(64), atol=1e-3, rtol=0)


def test_landmark_sets(model, shipped):
    assert (model.landmarks_7 == model.landmarks_68[list(ALIGN_7_IN_68)]).all()
    assert (model.landmarks_101[model.align_7_in_101] == model.landmarks_7).all()


def test_rule_for_the_101_is_near_the_shipped_models_own(shipped):
    shape, own = shipped.mean_shape.double().numpy(), shipped.landmarks_101.numpy()
    apart = np.linalg.norm(shape[landmarks_101(shape, shipped.landmarks_68.numpy())] - shape[own], axis=1)
    assert apart.mean() < 0.5
    assert apart.max() < 4.0


def test_rule_for_the_regions_is_near_the_shipped_models_own(shipped):
    shape, own = shipped.mean_shape.double().numpy(), shipped.labels.numpy()
    labels = region_labels(shape, shipped.landmarks_68.numpy())
    a, b, c = shape[shipped.triangles.numpy()].transpose(1, 0, 2)
    outer = np.zeros(len(shape), bool)
    outer[shipped.triangles.numpy()[np.cross(b - a, c - a)[:, 2] > 0]] = True
    outer &= own != REGION_NAMES.index("mouth")
    assert (labels[outer] == own[outer]).mean() > 0.85
    for name in ("right_brow", "left_brow", "nose", "upper_lip", "lower_lip"):
        drawn, true = (outer & (a == REGION_NAMES.index(name)) for a in (labels, own))
        assert (drawn & true).sum() / (drawn | true).sum() > 0.45, name


def test_regions_of_the_imported_face(model):
    counts = model.labels.bincount(minlength=len(REGION_NAMES))
    assert counts[0] == 0
    assert (counts[[1, 2, 3, 4, 5, 6, 8, 9]] > 3).all()
    for name, side in (("right_eye", -1), ("left_eye", 1)):
        assert (side * model.mean_shape[model.labels == REGION_NAMES.index(name), 0] > 0).all()


def test_round_trip_and_papers(imported, model):
    path, name = imported
    arrays = read_face_file(path, FIXED_MODEL_FORMAT)
    assert str(arrays["hash"]) == name == model.hash
    assert "holder of a BFM licence only" in model.licence
    assert "University of Basel" in model.credits
    assert json.loads(str(arrays["recipe"]))["source"] == "BFM_model_front.mat"
    np.savez(path.with_name("edited.npz"), **{**arrays, "mean_shape": arrays["mean_shape"] + 1})
    with pytest.raises(FaceFileError, match=r"hash: expected .* the file is damaged or was edited"):
        MorphableModel.load(path.with_name("edited.npz"))


def test_the_mesh_is_the_same_at_every_level_and_part(imported, model):
    fine, head = (MorphableModel.load(imported[0], **kind) for kind in ({"level": 2}, {"part": "head"}))
    assert (fine.level, head.part) == (2, "head")
    for name, tensor in model.named_buffers():
        torch.testing.assert_close(getattr(fine, name), tensor)
        torch.testing.assert_close(getattr(head, name), tensor)
    mirrored = model.mean_shape[model.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(mirrored, model.mean_shape, atol=1e-3, rtol=0)
    assert (model.uvs >= 0).all()
    assert (model.uvs <= 1).all()
    with pytest.raises(ValueError, match="level: expected one of"):
        MorphableModel.load(imported[0], level=3)


def test_reconstructor_forward_and_backward(model):
    torch.manual_seed(0)
    network = build_network(NetworkSettings(width=1 / 16))
    size, views = 64, 3
    batch = ViewBatch(
        images=torch.rand(2, views, 3, size, size),
        masks=torch.ones(2, views, size, size, dtype=torch.int64),
        weight_maps=torch.ones(2, views, size, size),
        landmarks_2d=torch.zeros(2, views, 68, 2),
        landmarks_2d_weights=torch.ones(2, views, 68),
        landmarks_3d=torch.zeros(2, 101, 3),
        landmarks_3d_valid=torch.zeros(2, dtype=torch.bool),
        intrinsics=default_intrinsics(size).expand(2, views, 3, 3),
        view_yaws=torch.zeros(2, views),
    )
    prediction = Reconstructor(network, model, ZBufferRenderer())(batch)
    assert prediction.image.shape == (2, views, size, size, 3)
    assert 0.2 < prediction.mask.float().mean() < 0.95
    (prediction.image.mean() + prediction.landmarks_2d.mean()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_a_model_trained_on_it_is_used_from_the_command_line(imported, tmp_path, capsys):
    """Such as `dfmvr import-checkpoint` writes, but small."""
    torch.manual_seed(0)
    network = NetworkSettings(width=1 / 16, mask_input="scalar", shared_light=True)
    card = ModelCard(network, 64, VIEW_NAMES, imported[1], 1, "test", 0, "", LICENCE)
    save_model(tmp_path / "model", build_network(network), card)
    cv2.imwrite(str(tmp_path / "crop.png"), np.full((64, 64, 3), 128, np.uint8))
    out = tmp_path / "face.obj"
    command = ["reconstruct", "--front", str(tmp_path / "crop.png"), "--out", str(out)]
    command += ["--model", str(tmp_path / "model")]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert f"the face model of dfmvr: the network was trained with face model {imported[1][:12]}" in told
    assert not out.exists()
    assert main([*command, "--face-model", str(imported[0])]) == 0
    vertices = [line for line in out.read_text().splitlines() if line.startswith("v ")]
    assert len(vertices) == COLUMNS * ROWS
    main(["reconstruct", *command[1:-2], "--face-model", str(imported[0])])
    assert f"{imported[0]}: the network was trained with" in capsys.readouterr().err


def with_entry(array, value):
    """Return a copy whose first entry is `value`."""
    changed = array.astype(np.float64)
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("meanshape", lambda a: a[:, :-1], r"meanshape: expected 3N numbers, got 6272"),
        ("meantex", lambda a: a[:, :-3], r"meantex: expected shape \(6273,\) \(N = 2091\), got \(1, 6270\)"),
        ("idBase", lambda a: a[:, :79], r"idBase: expected shape \(6273, 80\).*got \(6273, 79\)"),
        ("exBase", lambda a: a[:-3], r"exBase: expected shape \(6273, 64\).*got \(6270, 64\)"),
        ("tri", lambda a: a[:, :2], r"tri: expected shape .*got \(\d+, 2\)"),
        ("keypoints", lambda a: a[:, :67], r"keypoints: expected shape \(68,\).*got \(1, 67\)"),
        ("keypoints", lambda a: a.reshape(4, 17), r"keypoints: expected shape \(68,\).*got \(4, 17\)"),
        ("tri", lambda a: a - 1, r"tri: expected whole numbers 1\.\.2091 .*count from 1\), got 0\.\.2090"),
        ("tri", lambda a: a + 1, r"tri: expected whole numbers 1\.\.2091 .*got 2\.\.2092"),
        ("keypoints", lambda a: with_entry(a, 0), r"keypoints: expected whole numbers 1\.\.2091 .*got 0\.\."),
        ("keypoints", lambda a: with_entry(a, 7.5), r"keypoints: expected whole numbers"),
        ("texBase", lambda a: with_entry(a, np.nan), "texBase: expected finite values, got NaN"),
        ("texBase", lambda a: a.astype(complex) * 1j, "texBase: expected real numbers, got complex"),
        ("meanshape", lambda a: 100 * a, r"expected units of 100 mm, 50 to 150 mm .* got 8\d\d\d mm"),
        ("meanshape", lambda a: -a, r"expected x to the subject's left, y up, .*right to left eye -\d\d mm"),
    ],
)
def test_errors_name_the_field(fields, tmp_path, name, edit, message):
    savemat(tmp_path / "bad.mat", {**fields, name: edit(fields[name])})
    with pytest.raises(FaceFileError, match=rf"bad\.mat: .*{message}|bad\.mat: {message}"):
        import_bfm(tmp_path / "bad.mat", tmp_path / "bad.npz")
    assert not (tmp_path / "bad.npz").exists()


def test_missing_fields_are_listed(fields, tmp_path):
    rest = {name: a for name, a in fields.items() if name not in ("exBase", "keypoints")}
    savemat(tmp_path / "bad.mat", rest)
    with pytest.raises(FaceFileError, match=r"expected the fields exBase, keypoints, which are missing"):
        import_bfm(tmp_path / "bad.mat", tmp_path / "bad.npz")


def test_the_model_of_2009_asks_for_the_front_file(tmp_path):
    names = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")
    savemat(tmp_path / "01_MorphableModel.mat", {name: np.ones((3, 1)) for name in names})
    with pytest.raises(FaceFileError, match=r"expected BFM_model_front\.mat, got the original model of 2009"):
        import_bfm(tmp_path / "01_MorphableModel.mat", tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEFAULT_MODEL.read_bytes()[:3000], r"expected a readable \.mat file"),
        (b"", r"expected a readable \.mat file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF", "got version 7.3"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "bad.mat").write_bytes(content)
    with pytest.raises(FaceFileError, match=message):
        import_bfm(tmp_path / "bad.mat", tmp_path / "bad.npz")


def test_damaged_file(fields, tmp_path):
    savemat(tmp_path / "whole.mat", fields, do_compression=True)
    content = (tmp_path / "whole.mat").read_bytes()
    assert set(fields) <= set(loadmat(tmp_path / "whole.mat"))
    (tmp_path / "bad.mat").write_bytes(content[: len(content) // 2])
    with pytest.raises(FaceFileError, match=r"bad\.mat: expected"):
        import_bfm(tmp_path / "bad.mat", tmp_path / "bad.npz")


def test_command(imported, tmp_path, capsys):
    source = imported[0].with_name("BFM_model_front.mat")
    out = tmp_path / "mine.npz"
    assert main(["face-model", "import", "bfm", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert imported[1] in printed
    assert "holder of a BFM licence only" in printed
    assert main(["face-model", "--path", str(out)]) == 0
    assert "level 2: 2,091 vertices" in capsys.readouterr().out
    assert main(["face-model", "import", "bfm", str(tmp_path / "none.mat"), "--out", str(out)]) == 2
    assert "none.mat: expected a BFM_model_front.mat, found no such file" in capsys.readouterr().err
    assert main(["face-model", "import", "bfm", str(source), "--out", str(tmp_path / "a.zip")]) == 2
    assert "a.zip: expected a name that ends in .npz" in capsys.readouterr().err
