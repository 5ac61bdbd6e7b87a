"""The z-buffer in plain torch, for CUDA and for any CPU (see zbuffer.py for the method).

Coordinates are kept as separate vectors, and what cannot be seen is dropped early: triangles first, then pairs
of a pixel and a triangle that do not meet. Sums are 1-D scatter_add_, faster than the gradient of indexing.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dfmvr.geometry.camera import NEAR
from dfmvr.render.base import MIN_SHADOW

_PAIRS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Pairs of a pixel and a triangle tested together: bounds the memory, and on a CPU fits the cache."""
_NOTHING = torch.iinfo(torch.int64).max


def find_visible(vertices: Tensor, triangles: Tensor, intrinsics: Tensor, image_size: int) -> Tensor:
    """See zbuffer.Backend."""
    n_images, n_triangles = vertices.shape[0], triangles.shape[0]
    candidates, left, top, columns, pairs = _candidates(vertices, triangles, intrinsics, image_size)
    image = candidates.div(max(n_triangles, 1), rounding_mode="floor")
    triangle = candidates - image * n_triangles
    corners = _corners(vertices, triangles, image, triangle)
    # The key sorts by depth, then by id: positive floats order like their bits.
    keys = torch.full((n_images * image_size**2,), _NOTHING, device=vertices.device)
    for part in _parts(pairs, _PAIRS_AT_ONCE.get(vertices.device.type, 1 << 22)):
        owner = torch.repeat_interleave(pairs[part]) + part.start
        order = torch.arange(owner.numel(), device=owner.device)
        order = order - (pairs[part].cumsum(0) - pairs[part]).index_select(0, owner - part.start)
        row = order.div(columns.index_select(0, owner), rounding_mode="floor")
        x = left.index_select(0, owner) + order - row * columns.index_select(0, owner)
        y = top.index_select(0, owner) + row
        depth, hit = _test_pairs(corners, owner, _rays(intrinsics, image.index_select(0, owner), x, y))
        owner, x, y = owner[hit], x[hit], y[hit]
        pixel = (image.index_select(0, owner) * image_size + y) * image_size + x
        key = (depth.float().view(torch.int32).long() << 32) | triangle.index_select(0, owner)
        keys.scatter_reduce_(0, pixel, key, "amin")
    ids = torch.where(keys == _NOTHING, -1, keys & 0xFFFFFFFF)
    return ids.view(n_images, image_size, image_size)


def interpolate(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, intrinsics: Tensor, triangle_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See zbuffer.Backend."""
    pixel, rows, edges, _, z = _seen(vertices, triangles, intrinsics, triangle_ids)
    weights = edges / edges.sum(0)
    count, channels = triangle_ids.numel(), attributes.shape[-1]
    corner_attributes = attributes.reshape(-1, channels)[rows]
    image = vertices.new_zeros(count, channels)
    image[pixel] = (weights.unsqueeze(-1) * corner_attributes).sum(0)
    weight_map = vertices.new_zeros(count, 3)
    weight_map[pixel] = weights.T
    depth = vertices.new_zeros(count)
    depth[pixel] = (weights * z).sum(0)
    shape = triangle_ids.shape
    return image.view(*shape, channels), weight_map.view(*shape, 3), depth.view(shape)


def interpolate_backward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    intrinsics: Tensor,
    triangle_ids: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """See zbuffer.Backend."""
    pixel, rows, edges, (x, y, dx, dy), z = _seen(vertices, triangles, intrinsics, triangle_ids)
    total = edges.sum(0)
    weights = edges / total
    channels, flat_rows = attributes.shape[-1], rows.flatten()
    of_vertices = vertices.new_zeros(3, vertices.shape[0] * vertices.shape[1])
    of_attributes = attributes.new_zeros(channels, of_vertices.shape[1])
    of_image, of_weight_map, of_depth = gradients
    of_weights = torch.zeros_like(weights)
    if of_image is not None:
        g = of_image.reshape(-1, channels)[pixel]
        of_weights += (attributes.reshape(-1, channels)[rows] * g).sum(-1)
        for channel in range(channels):
            of_attributes[channel].scatter_add_(0, flat_rows, (weights * g[:, channel]).flatten())
    if of_weight_map is not None:
        of_weights += of_weight_map.reshape(-1, 3)[pixel].T
    if of_depth is not None:
        g = of_depth.flatten()[pixel]
        of_weights += g * z
        of_vertices[2].scatter_add_(0, flat_rows, (weights * g).flatten())
    of_edges = (of_weights - (weights * of_weights).sum(0)) / total
    following, preceding = (1, 2, 0), (2, 0, 1)
    of_x = of_edges[list(preceding)] * y[list(following)] - of_edges[list(following)] * y[list(preceding)]
    of_y = of_edges[list(following)] * x[list(preceding)] - of_edges[list(preceding)] * x[list(following)]
    for row, values in enumerate((of_x, of_y, -(of_x * dx + of_y * dy))):
        of_vertices[row].scatter_add_(0, flat_rows, values.flatten())
    return of_vertices.T.reshape(vertices.shape), of_attributes.T.reshape(attributes.shape)


def _candidates(
    vertices: Tensor, triangles: Tensor, intrinsics: Tensor, image_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the triangles whose box holds a pixel's centre.

    Returns:
        For S survivors: image * F + triangle, the box's left and top pixel, its width, its number of pixels.
    """
    screen, valid = _project(vertices, intrinsics)
    first, last = [], []
    inside = valid[:, triangles].all(-1)
    for axis in (0, 1):
        corners = screen[axis][:, triangles]
        first.append((corners.amin(-1) - 0.5).clamp(min=-0.5).ceil())
        last.append((corners.amax(-1) - 0.5).clamp(max=image_size - 1.0).floor())
        inside &= first[axis] <= last[axis]
    survivors = inside.flatten().nonzero().squeeze(1)
    left, top, right, bottom = (
        bound.flatten().index_select(0, survivors).long() for bound in (*first, *last)
    )
    columns = right - left + 1
    return survivors, left, top, columns, columns * (bottom - top + 1)


def _project(vertices: Tensor, intrinsics: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return pixels (x [B, N], y [B, N]) and whether a vertex may be drawn [B, N]."""
    x, y, z = vertices.unbind(-1)
    over_z = z.reciprocal()
    k = intrinsics.unsqueeze(-1)
    y = y * over_z
    pixel_x = (k[:, 0, 0] * x * over_z + k[:, 0, 1] * y) + k[:, 0, 2]
    pixel_y = k[:, 1, 1] * y + k[:, 1, 2]
    valid = (z > NEAR) & z.isfinite() & pixel_x.isfinite() & pixel_y.isfinite()
    return (pixel_x, pixel_y), valid


def _parts(pairs: Tensor, at_once: int) -> list[slice]:
    """Cut triangles into runs of about `at_once` pairs; there is no run where there is no pair."""
    if pairs.numel() == 0:
        return []
    ends = pairs.cumsum(0)
    steps = torch.arange(at_once, int(ends[-1]), at_once, device=ends.device)
    cuts = [0, *torch.searchsorted(ends, steps).unique().tolist(), pairs.numel()]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]


def _corners(vertices: Tensor, triangles: Tensor, image: Tensor, triangle: Tensor) -> Tensor:
    """Return the corners of S triangles as [3 corners, xyz, S]."""
    rows = _rows(vertices, triangles, image, triangle)
    return vertices.reshape(-1, 3).T.contiguous()[:, rows].transpose(0, 1).contiguous()


def _rows(vertices: Tensor, triangles: Tensor, image: Tensor, triangle: Tensor) -> Tensor:
    """Return where the corners lie among the B * N vertices, [3, S]."""
    return triangles.T.contiguous().index_select(1, triangle) + image * vertices.shape[1]


def _rays(intrinsics: Tensor, image: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rays (dx, dy, 1) through the centres of pixels."""
    k = intrinsics
    real = k.dtype
    dy = (y.to(real) + 0.5 - k[:, 1, 2].index_select(0, image)) * k[:, 1, 1].reciprocal().index_select(
        0, image
    )
    dx = (x.to(real) + 0.5 - k[:, 0, 2].index_select(0, image)) * k[:, 0, 0].reciprocal().index_select(
        0, image
    )
    return dx - (k[:, 0, 1] / k[:, 0, 0]).index_select(0, image) * dy, dy


def _edges(x: Tensor, y: Tensor) -> Tensor:
    """Return the edge functions [3, S] of sheared corners x, y [3, S]."""
    return torch.stack((x[1] * y[2] - y[1] * x[2], x[2] * y[0] - y[2] * x[0], x[0] * y[1] - y[0] * x[1]))


def _test_pairs(corners: Tensor, owner: Tensor, ray: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the depth of the pairs that meet, and which pairs those are."""
    x, y, z = corners.index_select(2, owner).unbind(1)
    edges = _edges(x - z * ray[0], y - z * ray[1])
    total = edges[0] + edges[1] + edges[2]
    met = ((edges >= 0).all(0) | (edges <= 0).all(0)) & (total.abs() > MIN_SHADOW)
    hit = met.nonzero().squeeze(1)
    u, v, w = edges[:, hit]
    az, bz, cz = z[:, hit]
    return (u * az + v * bz + w * cz) / total[hit], hit


def _seen(
    vertices: Tensor, triangles: Tensor, intrinsics: Tensor, triangle_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Evaluate the P pixels that see a triangle.

    Returns:
        The pixels among B * H * W, the corners' rows [3, P], the edge functions [3, P], (the sheared corners'
        x and y [3, P], the ray's dx and dy [P]), and the corners' z [3, P].
    """
    size = triangle_ids.shape[-1]
    pixel = (triangle_ids.flatten() >= 0).nonzero().squeeze(1)
    image = pixel.div(size * size, rounding_mode="floor")
    rest = pixel - image * (size * size)
    line = rest.div(size, rounding_mode="floor")
    dx, dy = _rays(intrinsics, image, rest - line * size, line)
    rows = _rows(vertices, triangles, image, triangle_ids.flatten().index_select(0, pixel))
    x, y, z = vertices.reshape(-1, 3).T.contiguous()[:, rows]
    x, y = x - z * dx, y - z * dy
    return pixel, rows, _edges(x, y), (x, y, dx, dy), z
