import pytest
import torch
from torch.autograd import gradcheck

from dfmvr.geometry.mesh import triangle_areas, vertex_areas, vertex_normals

SQUARE = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
SQUARE_TRIANGLES = torch.tensor([[0, 1, 2], [0, 2, 3]])
OCTAHEDRON = torch.tensor(
    [[3.0, 0, 0], [-3.0, 0, 0], [0, 3.0, 0], [0, -3.0, 0], [0, 0, 3.0], [0, 0, -3.0]], dtype=torch.float64
)
OCTAHEDRON_TRIANGLES = torch.tensor(
    [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
)


def test_counter_clockwise_triangles_have_outward_normals():
    normals = vertex_normals(SQUARE, SQUARE_TRIANGLES)
    torch.testing.assert_close(normals, torch.tensor([0.0, 0.0, 1.0]).expand(4, 3))
    torch.testing.assert_close(vertex_normals(OCTAHEDRON, OCTAHEDRON_TRIANGLES), OCTAHEDRON / 3.0)


def test_normals_are_weighted_by_area():
    # A large triangle in z = 0 and a small one in x = 0 share vertex 0.
    vertices = torch.tensor([[0.0, 0, 0], [4.0, 0, 0], [0, 4.0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [0, 3, 4]]))
    expected = torch.tensor([1.0, 0.0, 16.0])
    torch.testing.assert_close(normals[0], expected / expected.norm())


def test_areas_sum_to_the_surface():
    torch.testing.assert_close(triangle_areas(SQUARE, SQUARE_TRIANGLES), torch.tensor([2.0, 2.0]))
    areas = vertex_areas(SQUARE, SQUARE_TRIANGLES)
    torch.testing.assert_close(areas, torch.tensor([4.0, 2.0, 4.0, 2.0]) / 3.0)


@pytest.mark.parametrize("function", [vertex_normals, triangle_areas, vertex_areas])
def test_any_leading_dimensions(function):
    vertices = torch.randn(2, 3, 6, 3, dtype=torch.float64)
    together = function(vertices, OCTAHEDRON_TRIANGLES)
    assert together.shape[:2] == (2, 3)
    torch.testing.assert_close(together[1, 2], function(vertices[1, 2], OCTAHEDRON_TRIANGLES))


@pytest.mark.parametrize("function", [vertex_normals, triangle_areas, vertex_areas])
def test_degenerate_triangles_and_loose_vertices_have_finite_gradients(function):
    vertices = torch.cat((SQUARE, torch.ones(2, 3))).requires_grad_()
    triangles = torch.tensor([[0, 1, 2], [0, 0, 1], [4, 4, 4]])
    values = function(vertices, triangles)
    values.sum().backward()
    assert values.isfinite().all()
    assert vertices.grad.isfinite().all()
    if function is vertex_normals:
        torch.testing.assert_close(values[4:], torch.zeros(2, 3))


@pytest.mark.parametrize("function", [vertex_normals, triangle_areas, vertex_areas])
def test_a_mesh_may_have_no_triangle(function):
    values = function(SQUARE, torch.zeros(0, 3, dtype=torch.int64))
    assert (values == 0).all()


@pytest.mark.parametrize("function", [vertex_normals, triangle_areas, vertex_areas])
def test_gradients(function):
    noise = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vertices = (OCTAHEDRON + 0.3 * noise).requires_grad_()
    assert gradcheck(lambda v: function(v, OCTAHEDRON_TRIANGLES), (vertices,))
