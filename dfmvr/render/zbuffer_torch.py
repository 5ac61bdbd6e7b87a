"""The z-buffer in plain torch, for CUDA and for any CPU (see zbuffer.py for the method).

Coordinates are kept as separate vectors, and what cannot be seen is dropped early: triangles first, then
pairs of a pixel and a triangle that do not meet. Sums are 1-D scatter_add_, faster than index_put.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dfmvr.render.base import MIN_FLATNESS, MIN_SHADOW, usable_vertices

_PAIRS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Pairs of a pixel and a triangle tested together: bounds the memory, and on a CPU fits the cache."""
_NOTHING = torch.iinfo(torch.int64).max


def find_visible(vertices: Tensor, triangles: Tensor, intrinsics: Tensor, image_size: int) -> Tensor:
    """See zbuffer.Backend."""
    n_images, n_triangles = vertices.shape[0], triangles.shape[0]
    seen, left, top, columns, pairs = _candidates(vertices, triangles, intrinsics, image_size)
    image = seen.div(max(n_triangles, 1), rounding_mode="floor")
    triangle = seen - image * n_triangles
    x, y, z = (_gather(vertices, axis, _rows(vertices, triangles, image, triangle)) for axis in range(3))
    first_pixel = (image * image_size + top) * image_size + left
    ray_x, ray_y = (ray.flatten() for ray in _rays(intrinsics, image_size))
    # The key sorts by depth, then by id: positive floats order like their bits.
    keys = torch.full((n_images * image_size**2,), _NOTHING, device=vertices.device)
    for part in _parts(pairs, _PAIRS_AT_ONCE.get(vertices.device.type, 1 << 22)):
        counts = pairs[part]
        owner = torch.repeat_interleave(counts)
        order = torch.arange(owner.numel(), device=owner.device)
        order -= (counts.cumsum(0) - counts).index_select(0, owner)
        owner += part.start
        line = order.div(columns.index_select(0, owner), rounding_mode="floor")
        pixel = first_pixel.index_select(0, owner) + order
        pixel += line * (image_size - columns.index_select(0, owner))
        ray = ray_x.index_select(0, pixel), ray_y.index_select(0, pixel)
        depth, hit = _test_pairs(x, y, z, owner, ray)
        id_bits = triangle.index_select(0, owner.index_select(0, hit))
        key = (depth.float().view(torch.int32).long() << 32) | id_bits
        keys.scatter_reduce_(0, pixel.index_select(0, hit), key, "amin")
    ids = torch.where(keys == _NOTHING, -1, keys & 0xFFFFFFFF)
    return ids.view(n_images, image_size, image_size)


def interpolate(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, intrinsics: Tensor, triangle_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See zbuffer.Backend."""
    pixel, rows, edges, _, z = _seen(vertices, triangles, intrinsics, triangle_ids)
    weights = edges / edges.sum(0)
    count, channels = triangle_ids.numel(), attributes.shape[-1]
    image = vertices.new_zeros(count, channels)
    image[pixel] = sum(
        weight.unsqueeze(1) * attributes.flatten(0, 1).index_select(0, corner)
        for weight, corner in zip(weights, rows, strict=True)
    )
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
        for channel in range(channels):
            g = of_image[..., channel].flatten().index_select(0, pixel)
            of_weights += g * _gather(attributes, channel, rows)
            of_attributes[channel].scatter_add_(0, flat_rows, (weights * g).flatten())
    if of_weight_map is not None:
        of_weights += of_weight_map.reshape(-1, 3).index_select(0, pixel).T
    if of_depth is not None:
        g = of_depth.flatten().index_select(0, pixel)
        of_weights += g * z
        of_vertices[2].scatter_add_(0, flat_rows, (weights * g).flatten())
    of_edges = (of_weights - (weights * of_weights).sum(0)) / total
    # Corner i lies on the edges i + 1 and i + 2, whose other ends are the corners i + 2 and i + 1.
    next_edge, last_edge = of_edges.roll(-1, 0), of_edges.roll(1, 0)
    of_x = last_edge * y.roll(-1, 0) - next_edge * y.roll(1, 0)
    of_y = next_edge * x.roll(1, 0) - last_edge * x.roll(-1, 0)
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
    bounds = []
    for screen in _project(vertices, intrinsics):
        a, b, c = (screen.index_select(1, corner) for corner in triangles.unbind(1))
        bounds.append((torch.minimum(torch.minimum(a, b), c) - 0.5).clamp_(min=-0.5).ceil_())
        bounds.append((torch.maximum(torch.maximum(a, b), c) - 0.5).clamp_(max=image_size - 1.0).floor_())
    left, right, top, bottom = bounds
    inside = (left <= right) & (top <= bottom)  # false for NaN
    survivors = inside.flatten().nonzero().squeeze(1)
    left, right, top, bottom = (bound.flatten().index_select(0, survivors).long() for bound in bounds)
    columns = right - left + 1
    return survivors, left, top, columns, columns * (bottom - top + 1)


def _project(vertices: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels x, y [B, N]; NaN for vertices that are not usable."""
    x, y, z = vertices.unbind(-1)
    over_z = z.reciprocal()
    k = intrinsics.unsqueeze(-1)
    y = y * over_z
    pixel_x = (k[:, 0, 0] * x * over_z + k[:, 0, 1] * y) + k[:, 0, 2]
    pixel_y = k[:, 1, 1] * y + k[:, 1, 2]
    valid = usable_vertices(vertices)
    return torch.where(valid, pixel_x, torch.nan), torch.where(valid, pixel_y, torch.nan)


def _parts(pairs: Tensor, at_once: int) -> list[slice]:
    """Cut triangles into runs of about `at_once` pairs; there is no run where there is no pair."""
    if pairs.numel() == 0:
        return []
    ends = pairs.cumsum(0)
    steps = at_once * torch.arange(1, int(ends[-1]) // at_once + 1, device=ends.device)
    cuts = [0, *torch.searchsorted(ends, steps).tolist(), pairs.numel()]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]


def _rows(vertices: Tensor, triangles: Tensor, image: Tensor, triangle: Tensor) -> Tensor:
    """Return where the corners of S triangles lie among the B * N vertices, [3, S]."""
    return triangles.T.contiguous().index_select(1, triangle) + image * vertices.shape[1]


def _gather(values: Tensor, column: int, rows: Tensor) -> Tensor:
    """Return one column of [B, N, C] at flat rows [3, S]."""
    return values[..., column].flatten().index_select(0, rows.flatten()).view(rows.shape)


def _rays(intrinsics: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Return dx, dy [B, H, W] of the rays (dx, dy, 1) through the centres of pixels."""
    centres = torch.arange(image_size, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
    k = intrinsics[..., None, None]
    dy = (centres[:, None] - k[:, 1, 2]) * k[:, 1, 1].reciprocal()
    dx = (centres - k[:, 0, 2]) * k[:, 0, 0].reciprocal() - (k[:, 0, 1] / k[:, 0, 0]) * dy
    return dx, dy.expand_as(dx)


def _edges(x: Tensor | list[Tensor], y: Tensor | list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edge functions of sheared corners x, y [3, S]."""
    (ax, bx, cx), (ay, by, cy) = x, y
    return bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx


def _test_pairs(
    x: Tensor, y: Tensor, z: Tensor, owner: Tensor, ray: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the depth of the pairs that meet, and which pairs those are; corners are [3, S]."""
    corner_z = [corner.index_select(0, owner) for corner in z]
    sheared = [
        [corner.index_select(0, owner) - depth * slope for corner, depth in zip(axis, corner_z, strict=True)]
        for axis, slope in zip((x, y), ray, strict=True)
    ]
    edges = _edges(*sheared)
    total = edges[0] + edges[1] + edges[2]
    lowest = torch.minimum(torch.minimum(edges[0], edges[1]), edges[2])
    highest = torch.maximum(torch.maximum(edges[0], edges[1]), edges[2])
    a, b, c = (x * x + y * y for x, y in zip(*sheared, strict=True))
    met = ((lowest >= 0) | (highest <= 0)) & (total.abs() > MIN_SHADOW + MIN_FLATNESS * (a + b + c))
    hit = met.nonzero().squeeze(1)
    u, v, w, az, bz, cz = (values.index_select(0, hit) for values in (*edges, *corner_z))
    return (u * az + v * bz + w * cz) / total.index_select(0, hit), hit


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
    dx, dy = (ray.flatten().index_select(0, pixel) for ray in _rays(intrinsics, size))
    rows = _rows(vertices, triangles, image, triangle_ids.flatten().index_select(0, pixel))
    x, y, z = (_gather(vertices, axis, rows) for axis in range(3))
    x, y = x - z * dx, y - z * dy
    return pixel, rows, torch.stack(_edges(x, y)), (x, y, dx, dy), z
