"""What a renderer meets in practice: empty, hidden, broken and awkward meshes."""

from dataclasses import replace

import pytest
import torch

from dfmvr.geometry.camera import NEAR
from dfmvr.render.reference import ReferenceRenderer
from dfmvr.render.zbuffer import ZBufferRenderer

RENDERERS = [ZBufferRenderer("numba"), ZBufferRenderer("torch"), ReferenceRenderer()]


@pytest.fixture(params=RENDERERS, ids=["numba", "torch", "reference"])
def renderer(request):
    return request.param


def test_shapes_and_types_of_the_output(head, renderer):
    output = head.render(renderer)
    assert output.attributes.shape == (2, 3, 40, 40, 4)
    assert output.barycentrics.shape == (2, 3, 40, 40, 3)
    assert output.depth.shape == output.mask.shape == output.triangle_ids.shape == (2, 3, 40, 40)
    assert output.mask.dtype == torch.bool
    assert output.triangle_ids.dtype == torch.int64
    outside = ~output.mask
    assert (output.triangle_ids[outside] == -1).all()
    for value in (output.attributes, output.barycentrics, output.depth):
        assert (value[outside] == 0).all()


def test_a_mesh_without_triangles_is_an_empty_picture(head, renderer):
    head = replace(head, triangles=head.triangles[:0]).leaves()
    output = head.render(renderer)
    assert not output.mask.any()
    (output.attributes.sum() + output.depth.sum()).backward()
    assert (head.vertices.grad == 0).all()


def test_a_mesh_without_vertices_is_an_empty_picture(renderer):
    output = renderer(
        torch.zeros(2, 0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(2, 0, 5), torch.eye(3), 8
    )
    assert output.attributes.shape == (2, 8, 8, 5)
    assert not output.mask.any()


def test_a_picture_without_attributes_still_has_a_mask(tile, renderer):
    output = replace(tile, attributes=tile.attributes[..., :0]).render(renderer)
    assert output.attributes.shape == (1, 8, 8, 0)
    assert output.mask.any()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_batch_may_be_empty(tile, backend):
    output = ZBufferRenderer(backend)(
        tile.vertices[:0], tile.triangles, tile.attributes[:0], tile.intrinsics[:0], tile.size
    )
    assert output.attributes.shape == (0, 8, 8, 3)


@pytest.mark.parametrize("depth", [-500.0, 0.0, NEAR, NEAR / 2])
def test_what_reaches_behind_the_near_plane_is_not_drawn(tile, renderer, depth):
    tile.vertices[0, 1, 2] = depth  # of the first triangle only
    tile = tile.leaves()
    output = tile.render(renderer)
    assert set(output.triangle_ids.unique().tolist()) == {-1, 1}
    (output.attributes.sum() + output.depth.sum()).backward()
    assert tile.vertices.grad.isfinite().all()
    assert (tile.vertices.grad[0, 1] == 0).all()
    assert (tile.attributes.grad[0, 1] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_non_finite_vertices_harm_only_their_own_triangles(head, renderer, value, axis):
    victim = 8 * 16 + 8
    head = replace(
        head,
        vertices=head.vertices[0, 1],
        attributes=head.attributes[0, 1],
        intrinsics=head.intrinsics[0, 1],
    )
    healthy = replace(head, triangles=head.triangles[(head.triangles != victim).all(-1)])
    broken_vertices = head.vertices.clone()
    broken_vertices[victim, axis] = value
    broken = replace(head, vertices=broken_vertices)
    assert torch.equal(broken.render(renderer).depth, healthy.render(renderer).depth)
    for found, expected in zip(broken.gradients(renderer), healthy.gradients(renderer), strict=True):
        assert torch.equal(found, expected)
        assert (found[victim] == 0).all()


def test_degenerate_triangles_are_not_seen_and_have_no_gradient(tile, renderer):
    front = torch.tensor([[[-60.0, -60.0, 500.0], [0.0, 0.0, 500.0], [60.0, 60.0, 500.0]]])
    vertices = torch.cat((tile.vertices, front), 1)
    attributes = torch.cat((tile.attributes, torch.zeros(1, 3, 3)), 1)
    triangles = torch.cat((torch.tensor([[4, 5, 6], [4, 4, 5], [6, 6, 6]]), tile.triangles))
    scene = replace(tile, vertices=vertices, attributes=attributes, triangles=triangles)
    ids = scene.render(renderer).triangle_ids
    assert torch.equal(ids, tile.render(renderer).triangle_ids + 3)
    for gradient in scene.gradients(renderer):
        assert gradient.isfinite().all()
        assert (gradient[0, 4:] == 0).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("length", [0.5, 20.0, 500.0])
def test_needles_through_pixel_centres_are_not_seen_by_rounding(tile, backend, length):
    """Collinear corners around a pixel's ray: the signs of their edge functions are noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 8, (500, 1, 2), generator=generator) + 0.5
    k = tile.intrinsics[0]
    rays = torch.cat(((pixels - k[:2, 2]) / k[[0, 1], [0, 1]], torch.ones(500, 1, 1)), -1)
    slants = length * torch.nn.functional.normalize(torch.randn(500, 1, 3, generator=generator), dim=-1)
    offsets = torch.rand(500, 3, 1, generator=generator) * torch.tensor([[1.0], [-1.0], [1.0]])
    vertices = (rays * 1000.0 + slants * offsets).reshape(-1, 3)
    scene = replace(
        tile, vertices=vertices, triangles=torch.arange(1500).view(-1, 3), attributes=torch.rand(1500, 3)
    )
    assert not scene.render(ZBufferRenderer(backend)).mask.any()


def test_both_sides_of_a_triangle_are_drawn(tile, renderer):
    flipped = replace(tile, triangles=tile.triangles.flip(-1))
    torch.testing.assert_close(flipped.render(renderer).attributes, tile.render(renderer).attributes)


def test_equal_depth_goes_to_the_lower_id(tile, renderer):
    twice = replace(tile, triangles=tile.triangles.repeat(2, 1))
    assert torch.equal(twice.render(renderer).triangle_ids, tile.render(renderer).triangle_ids)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_grid_with_edges_through_pixel_centres_has_no_holes(backend):
    line = torch.linspace(-0.5, 15.5, 17)
    y, x = torch.meshgrid(line, line, indexing="ij")
    vertices = torch.stack((x, y, torch.ones_like(x)), -1).reshape(-1, 3) * 1000.0
    index = torch.arange(17 * 17).view(17, 17)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.cat(
        (torch.stack((a, b, c), -1).reshape(-1, 3), torch.stack((b, d, c), -1).reshape(-1, 3))
    )
    output = ZBufferRenderer(backend)(vertices, triangles, vertices, torch.eye(3), 15)
    assert output.mask.all()


def test_a_triangle_larger_than_the_picture_fills_it(renderer):
    vertices = torch.tensor([[-1e6, -1e6, 1000.0], [3e6, -1e6, 1000.0], [-1e6, 3e6, 1000.0]])
    output = renderer(vertices, torch.tensor([[0, 1, 2]]), vertices, torch.eye(3), 16)
    assert output.mask.all()
    torch.testing.assert_close(output.depth, torch.full((16, 16), 1000.0))


def test_leading_dimensions_broadcast_and_sum_their_gradients(head, renderer):
    shared = head.attributes[0, 0]
    attributes = shared.clone().requires_grad_()
    together = renderer(head.vertices, head.triangles, attributes, head.intrinsics[0, 0], head.size)
    one = renderer(head.vertices[1, 2], head.triangles, shared, head.intrinsics[0, 0], head.size)
    torch.testing.assert_close(together.attributes[1, 2], one.attributes)
    together.attributes.sum().backward()
    torch.testing.assert_close(attributes.grad.sum(), together.mask.sum() * 4.0)


def test_layout_and_integer_type_of_the_inputs_do_not_matter(head, renderer):
    awkward = replace(
        head,
        vertices=head.vertices.transpose(-1, -2).contiguous().transpose(-1, -2),
        attributes=head.attributes.repeat_interleave(2, -1)[..., ::2],
        triangles=head.triangles.int().T.contiguous().T,
    )
    assert not awkward.vertices.is_contiguous()
    for found, expected in zip(awkward.gradients(renderer), head.gradients(renderer), strict=True):
        torch.testing.assert_close(found, expected)


def test_half_precision_is_rendered_in_float32(tile, renderer):
    output = replace(tile, attributes=tile.attributes.bfloat16()).render(renderer)
    assert output.attributes.dtype == torch.float32


@pytest.mark.parametrize("wanted", ["vertices", "attributes"])
@pytest.mark.parametrize("used", ["attributes", "barycentrics", "depth"])
def test_one_input_may_want_gradients_and_one_output_may_be_used(tile, renderer, wanted, used):
    both = tile.leaves()
    getattr(both.render(renderer), used).square().sum().backward()
    expected = getattr(both, wanted).grad
    single = replace(tile, **{wanted: getattr(tile, wanted).clone().requires_grad_()})
    value = getattr(single.render(renderer), used).square().sum()
    if value.requires_grad:
        value.backward()
    found = getattr(single, wanted).grad
    if expected is None or found is None:
        assert wanted == "attributes"
        assert used != "attributes"
    else:
        torch.testing.assert_close(found, expected)


def test_without_gradients_nothing_is_kept(tile, renderer):
    with torch.no_grad():
        output = tile.leaves().render(renderer)
    assert not output.attributes.requires_grad
    torch.testing.assert_close(output.attributes, tile.render(renderer).attributes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertices": torch.zeros(4, 2)}, r"vertices_camera: expected \[\*L, N, 3\], got \[4, 2\]"),
        (
            {"triangles": torch.zeros(2, 3)},
            r"triangles: expected integers \[F, 3\], got torch.float32 \[2, 3\]",
        ),
        ({"triangles": torch.tensor([[0, 1, 4]])}, r"triangles: expected vertex ids in \[0, 4\), got 0 to 4"),
        (
            {"triangles": torch.tensor([[-1, 1, 2]])},
            r"triangles: expected vertex ids in \[0, 4\), got -1 to 2",
        ),
        ({"attributes": torch.zeros(5, 2)}, r"attributes: expected \[\*L, 4, C\], got \[5, 2\]"),
        ({"intrinsics": torch.zeros(1, 4)}, r"intrinsics: expected \[\*L, 3, 3\], got \[1, 4\]"),
        ({"size": 0}, "image_size: expected a positive number of pixels, got 0"),
    ],
)
def test_wrong_inputs_are_named(tile, renderer, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(tile, **changes).render(renderer)
