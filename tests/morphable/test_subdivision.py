import numpy as np
import pytest

from dfmvr.morphable.subdivision import catmull_clark, quad_edges
from dfmvr.morphable.topology import triangulate

CUBE = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
CORNERS = np.array([[x, y, z] for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], float)
CUBE_MIRROR = np.array([1, 0, 3, 2, 5, 4, 7, 6])


def test_edges_of_a_cube():
    edges, of_side, sharing = quad_edges(CUBE, 8)
    assert edges.shape == (12, 2)
    assert (sharing == 2).all()
    sides = np.sort(np.stack([CUBE, np.roll(CUBE, -1, 1)], -1), -1)
    np.testing.assert_array_equal(edges[of_side], sides)


def test_a_cube_follows_the_published_rules():
    fine = catmull_clark(CUBE, 8, CUBE_MIRROR)
    vertices = fine.matrix @ CORNERS
    assert vertices.shape == (8 + 6 + 12, 3)
    # Valence 3: (faces + 2 edges) / 3, by hand for the corner (-1, -1, -1): each coordinate is -5/9.
    np.testing.assert_allclose(vertices[0], [-5 / 9] * 3)
    np.testing.assert_allclose(np.sort(np.abs(vertices[8:14]).sum(1)), 1)  # face points: the centres
    np.testing.assert_allclose(np.abs(vertices[14:]).max(1), 0.75)  # edge points


def test_rows_sum_to_one_and_the_border_is_a_curve_of_its_own():
    square = np.array([[0, 1, 2, 3]])
    fine = catmull_clark(square, 4, np.array([1, 0, 3, 2]))
    np.testing.assert_allclose(np.asarray(fine.matrix.sum(1)).ravel(), 1)
    corners = np.array([[0, 0, 0], [4, 0, 0], [4, 4, 0], [0, 4, 0]], float)
    np.testing.assert_allclose((fine.matrix @ corners)[0], [0.75 * 0 + 4 / 8, 4 / 8, 0])


def test_mirror_map_of_the_finer_mesh():
    fine = catmull_clark(CUBE, 8, CUBE_MIRROR)
    vertices = fine.matrix @ CORNERS
    np.testing.assert_allclose(vertices[fine.mirror], vertices * (-1, 1, 1), atol=1e-12)


def test_orientation_is_kept():
    fine = catmull_clark(CUBE, 8, CUBE_MIRROR)
    a, b, c = (fine.matrix @ CORNERS)[triangulate(fine.quads)].transpose(1, 0, 2)
    outwards = (np.cross(b - a, c - a) * (a + b + c)).sum(1)
    assert (outwards > 0).all()


def test_wrong_meshes_are_refused():
    with pytest.raises(ValueError, match="manifold mesh, got an edge shared by 3 quads"):
        catmull_clark(np.array([[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 6, 7]]), 8, np.arange(8))
    with pytest.raises(ValueError, match="mirror: expected a map that keeps the mesh's quads"):
        catmull_clark(np.array([[0, 1, 2, 3], [1, 4, 5, 2]]), 6, np.array([0, 1, 2, 3, 5, 4]))
