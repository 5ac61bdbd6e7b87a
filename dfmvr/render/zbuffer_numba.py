"""The z-buffer's CPU backend: compiled loops, one image to a thread (zbuffer.py has the method).

Images run on Python threads over kernels that release the GIL, not on numba's own threads: nothing depends
on a threading layer, gradients are added up in one order, and a process that was forked or started by a
scheduler behaves like any other. The kernels copy what a loop reads into locals: the compiler cannot know
that the arrays do not overlap. They get other modules' constants as arguments: kernels on disk are made anew
only when this file changes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from dfmvr.geometry.camera import NEAR
from dfmvr.render.base import LIMIT, MIN_FLATNESS, MIN_SHADOW

_LIMITS = (NEAR, LIMIT, MIN_SHADOW, MIN_FLATNESS)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, once for each floating type, and keep the result on disk where possible."""
    kernel: Callable[..., Any]
    try:
        kernel = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no writable place for the cache: compile in every process
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return kernel


def find_visible(vertices: Tensor, triangles: Tensor, intrinsics: Tensor, image_size: int) -> Tensor:
    """See zbuffer.Backend."""
    ids = torch.empty((vertices.shape[0], image_size, image_size), dtype=torch.int64)
    points, cameras, out = _arrays(vertices, intrinsics, ids)
    corners = triangles.int().numpy()
    _for_each_image(len(points), lambda b: _find_visible(points[b], corners, cameras[b], _LIMITS, out[b]))
    return ids


def interpolate(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, intrinsics: Tensor, triangle_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See zbuffer.Backend."""
    shape = triangle_ids.shape
    image = vertices.new_empty((*shape, attributes.shape[-1]))
    weights = vertices.new_empty((*shape, 3))
    depth = vertices.new_empty(shape)
    inputs = _arrays(vertices, attributes, intrinsics, triangle_ids, image, weights, depth)
    corners = triangles.int().numpy()
    _for_each_image(shape[0], lambda b: _interpolate(corners, *(array[b] for array in inputs)))
    return image, weights, depth


def interpolate_backward(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    intrinsics: Tensor,
    triangle_ids: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """See zbuffer.Backend."""
    count = triangle_ids.shape[0]
    of_image, of_weights, of_depth = (
        vertices.new_empty((count,) + (0,) * rank) if gradient is None else gradient.contiguous()
        for gradient, rank in zip(gradients, (3, 3, 2), strict=True)
    )
    of_vertices, of_attributes = torch.zeros_like(vertices), torch.zeros_like(attributes)
    inputs = _arrays(
        vertices,
        attributes,
        intrinsics,
        triangle_ids,
        of_image,
        of_weights,
        of_depth,
        of_vertices,
        of_attributes,
    )
    corners = triangles.int().numpy()
    _for_each_image(count, lambda b: _interpolate_backward(corners, *(array[b] for array in inputs)))
    return of_vertices, of_attributes


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="dfmvr-render")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _for_each_image(count: int, work: Callable[[int], None]) -> None:
    """Call work(0) ... work(count - 1) on as many threads as torch uses."""
    workers = min(torch.get_num_threads(), count)
    if workers > 1:
        for _ in _pool(workers).map(work, range(count)):
            pass
    else:
        for index in range(count):
            work(index)


@_compiled
def _find_visible(vertices, triangles, camera, limits, ids):
    """Fill `ids` [H, W] for vertices [N, 3], triangles [F, 3] int32, an intrinsic matrix and _LIMITS."""
    real = vertices.dtype.type
    half, least, flattest = real(0.5), real(limits[2]), real(limits[3])
    height, width = ids.shape
    screen = _project(vertices, camera, real(limits[0]), real(limits[1]))
    rays = _rays(camera)
    nearest = np.full((height, width), real(np.inf), vertices.dtype)
    ids[:] = -1
    for f in range(triangles.shape[0]):
        i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        left, right = _pixel_range(screen[i, 0], screen[j, 0], screen[k, 0], half, real(width - 1))
        if left > right:
            continue
        top, bottom = _pixel_range(screen[i, 1], screen[j, 1], screen[k, 1], half, real(height - 1))
        px, py, az = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        qx, qy, bz = vertices[j, 0], vertices[j, 1], vertices[j, 2]
        rx, ry, cz = vertices[k, 0], vertices[k, 1], vertices[k, 2]
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                dx, dy = _ray(rays, real(x), real(y))
                ax, bx, cx = px - az * dx, qx - bz * dx, rx - cz * dx
                ay, by, cy = py - az * dy, qy - bz * dy, ry - cz * dy
                u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
                if min(u, v, w) >= 0 or max(u, v, w) <= 0:
                    total = u + v + w
                    extent = (ax * ax + ay * ay) + (bx * bx + by * by) + (cx * cx + cy * cy)
                    if abs(total) > least + flattest * extent:
                        depth = (u * az + v * bz + w * cz) / total
                        if depth < nearest[y, x]:
                            nearest[y, x] = depth
                            ids[y, x] = f


@_compiled
def _project(vertices, camera, near, limit):
    """Return pixels [N, 2]; NaN for vertices that are not usable (see base.usable_vertices)."""
    real = vertices.dtype.type
    fx, skew, cx, fy, cy = camera[0, 0], camera[0, 1], camera[0, 2], camera[1, 1], camera[1, 2]
    screen = np.empty((vertices.shape[0], 2), vertices.dtype)
    for n in range(vertices.shape[0]):
        x, y, z = vertices[n, 0], vertices[n, 1], vertices[n, 2]
        if z > near and z < limit and abs(x) < limit and abs(y) < limit:  # false for NaN
            over_z = real(1) / z
            y *= over_z
            screen[n, 0], screen[n, 1] = (fx * x * over_z + skew * y) + cx, fy * y + cy
        else:
            screen[n, 0], screen[n, 1] = real(np.nan), real(np.nan)
    return screen


@_compiled
def _pixel_range(a, b, c, half, last):
    """Return the first and last pixel whose centre lies between three coordinates; empty if one is NaN."""
    total = a + b + c
    low = max(min(a, b, c) - half, -half)
    high = min(max(a, b, c) - half, last)
    if total != total or low > last or high < 0:
        return 1, 0
    first = int(low)  # truncation and a step instead of ceil, which is a call
    return first + int(low > first), int(high)


@_compiled
def _rays(camera):
    """Return what _ray needs of an intrinsic matrix."""
    one = camera.dtype.type(1)
    fx, skew, cx, fy, cy = camera[0, 0], camera[0, 1], camera[0, 2], camera[1, 1], camera[1, 2]
    return one / fx, cx, one / fy, cy, skew / fx, camera.dtype.type(0.5)


@_compiled
def _ray(rays, x, y):
    """Return the ray (dx, dy, 1) through a pixel's centre."""
    per_x, cx, per_y, cy, skew, half = rays
    dy = (y + half - cy) * per_y
    return (x + half - cx) * per_x - skew * dy, dy


@_compiled
def _interpolate(triangles, vertices, attributes, camera, ids, image, weights, depth):
    """Fill image [H, W, C], weights [H, W, 3] and depth [H, W] from the visible ids [H, W]."""
    real = vertices.dtype.type
    image[:], weights[:], depth[:] = real(0), real(0), real(0)
    rays = _rays(camera)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            f = ids[y, x]
            if f < 0:
                continue
            dx, dy = _ray(rays, real(x), real(y))
            i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            az, bz, cz = vertices[i, 2], vertices[j, 2], vertices[k, 2]
            ax, ay = vertices[i, 0] - az * dx, vertices[i, 1] - az * dy
            bx, by = vertices[j, 0] - bz * dx, vertices[j, 1] - bz * dy
            cx, cy = vertices[k, 0] - cz * dx, vertices[k, 1] - cz * dy
            u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
            per_total = real(1) / (u + v + w)
            u, v, w = u * per_total, v * per_total, w * per_total
            weights[y, x, 0], weights[y, x, 1], weights[y, x, 2] = u, v, w
            depth[y, x] = u * az + v * bz + w * cz
            for c in range(image.shape[2]):
                image[y, x, c] = u * attributes[i, c] + v * attributes[j, c] + w * attributes[k, c]


@_compiled
def _interpolate_backward(
    triangles, vertices, attributes, camera, ids, of_image, of_weights, of_depth, of_vertices, of_attributes
):
    """Add to of_vertices [N, 3] and of_attributes [N, C]; an empty gradient of a result counts as zero."""
    real = vertices.dtype.type
    channels = attributes.shape[1] if of_image.shape[0] else 0
    rays = _rays(camera)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            f = ids[y, x]
            if f < 0:
                continue
            dx, dy = _ray(rays, real(x), real(y))
            i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            az, bz, cz = vertices[i, 2], vertices[j, 2], vertices[k, 2]
            ax, ay = vertices[i, 0] - az * dx, vertices[i, 1] - az * dy
            bx, by = vertices[j, 0] - bz * dx, vertices[j, 1] - bz * dy
            cx, cy = vertices[k, 0] - cz * dx, vertices[k, 1] - cz * dy
            u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
            per_total = real(1) / (u + v + w)
            u, v, w = u * per_total, v * per_total, w * per_total
            # p, q, r: gradients of the three weights, then of the edge functions
            p, q, r = real(0), real(0), real(0)
            for c in range(channels):
                g = of_image[y, x, c]
                p, q, r = p + g * attributes[i, c], q + g * attributes[j, c], r + g * attributes[k, c]
                of_attributes[i, c] += u * g
                of_attributes[j, c] += v * g
                of_attributes[k, c] += w * g
            if of_weights.shape[0]:
                p, q, r = p + of_weights[y, x, 0], q + of_weights[y, x, 1], r + of_weights[y, x, 2]
            if of_depth.shape[0]:
                g = of_depth[y, x]
                p, q, r = p + g * az, q + g * bz, r + g * cz
                of_vertices[i, 2] += u * g
                of_vertices[j, 2] += v * g
                of_vertices[k, 2] += w * g
            mean = u * p + v * q + w * r
            p, q, r = (p - mean) * per_total, (q - mean) * per_total, (r - mean) * per_total
            _add_sheared(of_vertices, i, r * by - q * cy, q * cx - r * bx, dx, dy)
            _add_sheared(of_vertices, j, p * cy - r * ay, r * ax - p * cx, dx, dy)
            _add_sheared(of_vertices, k, q * ay - p * by, p * bx - q * ax, dx, dy)


@_compiled
def _add_sheared(of_vertices, n, gx, gy, dx, dy):
    """Add the gradient of a sheared corner (x - z dx, y - z dy) to vertex n."""
    of_vertices[n, 0] += gx
    of_vertices[n, 1] += gy
    of_vertices[n, 2] -= gx * dx + gy * dy
