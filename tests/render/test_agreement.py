"""Every renderer draws what the slow oracle draws, with the gradients that autograd finds for it."""

import pytest
import torch
from torch.autograd import gradcheck

from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel
from dfmvr.render.reference import ReferenceRenderer
from dfmvr.render.zbuffer import ZBufferRenderer

BACKENDS = ["numba", "torch"]


@pytest.fixture(params=["head", "soup"])
def scene(request):
    return request.getfixturevalue(request.param)


def assert_outputs_agree(found, expected, tolerance):
    same = found.triangle_ids == expected.triangle_ids
    assert same.float().mean() > 0.999
    assert (found.mask == expected.mask).float().mean() > 0.999
    assert 0.2 < expected.mask.float().mean() < 1
    for name in ("attributes", "barycentrics", "depth"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(ours[same], theirs[same], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_equal_the_oracles(scene, backend):
    found, expected = scene.render(ZBufferRenderer(backend)), scene.render(ReferenceRenderer())
    assert found.attributes.dtype == torch.float32
    assert_outputs_agree(found, expected, 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_real_face_equals_the_oracles(backend):
    face = MorphableModel.load()
    camera = to_camera(face.mean_shape, euler_to_matrix(torch.tensor([0.1, -0.6, 0.05])), torch.zeros(3))
    arguments = (camera, face.triangles, face.mean_albedo, default_intrinsics(40), 40)
    assert_outputs_agree(ZBufferRenderer(backend)(*arguments), ReferenceRenderer()(*arguments), 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_equals_the_oracle_to_rounding_with_its_gradients(scene, backend):
    scene = scene.double()
    assert_outputs_agree(scene.render(ZBufferRenderer(backend)), scene.render(ReferenceRenderer()), 1e-8)
    for found, expected in zip(
        scene.gradients(ZBufferRenderer(backend)), scene.gradients(ReferenceRenderer()), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-7 * expected.abs().max().item(), rtol=1e-6)


def test_both_backends_see_the_same_triangles_and_gradients(scene):
    numba, plain = (scene.render(ZBufferRenderer(backend)) for backend in BACKENDS)
    assert torch.equal(numba.triangle_ids, plain.triangle_ids)
    for found, expected in zip(*(scene.gradients(ZBufferRenderer(b)) for b in BACKENDS), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("renderer", [*map(ZBufferRenderer, BACKENDS), ReferenceRenderer()], ids=str)
def test_gradients_equal_finite_differences(tile, renderer):
    tile = tile.double().leaves()

    def maps(vertices, attributes):
        output = renderer(vertices, tile.triangles, attributes, tile.intrinsics, tile.size)
        return output.attributes, output.barycentrics, output.depth

    assert gradcheck(maps, (tile.vertices, tile.attributes), atol=1e-6)


@pytest.mark.parametrize("renderer", [*map(ZBufferRenderer, BACKENDS), ReferenceRenderer()], ids=str)
def test_interpolation_is_perspective_correct(soup, renderer):
    """A vertex's position as its attribute comes out as the point where the pixel's ray meets the surface."""
    output = renderer(soup.vertices, soup.triangles, soup.vertices, soup.intrinsics, soup.size)
    centres = torch.arange(soup.size) + 0.5
    x, y = torch.meshgrid(centres, centres, indexing="xy")
    rays = torch.stack((x, y, torch.ones_like(x)), -1) @ torch.linalg.inv(soup.intrinsics[0]).T
    expected = rays * output.depth.unsqueeze(-1)
    torch.testing.assert_close(output.attributes, expected, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(output.barycentrics.sum(-1), output.mask.float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_the_cpu(head):
    from dataclasses import replace

    moved = {
        name: getattr(head, name).cuda() for name in ("vertices", "triangles", "attributes", "intrinsics")
    }
    found = replace(head, **moved).render(ZBufferRenderer())
    assert_outputs_agree(found.to("cpu"), head.render(ZBufferRenderer("torch")), 1e-3)


def test_pytorch3d_draws_the_same_pictures(head):
    pytest.importorskip("pytorch3d")
    from dfmvr.render.pytorch3d import PyTorch3DRenderer

    assert_outputs_agree(head.render(PyTorch3DRenderer()), head.render(ReferenceRenderer()), 1e-2)
    for found, expected in zip(
        head.gradients(PyTorch3DRenderer()), head.gradients(ReferenceRenderer()), strict=True
    ):
        assert (found - expected).norm() < 1e-2 * expected.norm()


def test_without_pytorch3d_the_adapter_says_how_to_get_it(monkeypatch):
    import sys

    from dfmvr.render.pytorch3d import PyTorch3DRenderer

    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    with pytest.raises(ImportError, match=r"expected the package pytorch3d.*pip install"):
        PyTorch3DRenderer()
