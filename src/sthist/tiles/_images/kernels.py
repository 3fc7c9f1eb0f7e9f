"""The inner loops of reading and writing tiles.

All of them release the GIL and none runs in parallel by itself: threads above them do (``parallel=True`` does not
survive a fork).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def block_mean(region, ky, kx):
    """Mean over blocks of ky x kx pixels of a (c, h, w) array, as float32; blocks cut by the border average less."""
    c, h, w = region.shape
    whole = w // kx
    nh, nw = (h + ky - 1) // ky, (w + kx - 1) // kx
    out = np.empty((c, nh, nw), np.float32)
    sums = np.empty(w, np.float32)
    for k in range(c):
        for i in range(nh):
            y0, y1 = i * ky, min(h, (i + 1) * ky)
            sums[:] = np.float32(0.0)
            for y in range(y0, y1):
                for x in range(w):
                    sums[x] += region[k, y, x]
            inverse = np.float32(1.0 / ((y1 - y0) * kx))
            if kx == 2:  # by far the most frequent; unrolled, it runs twice as fast
                for j in range(whole):
                    out[k, i, j] = (sums[2 * j] + sums[2 * j + 1]) * inverse
            else:
                for j in range(whole):
                    total = np.float32(0.0)
                    for x in range(j * kx, (j + 1) * kx):
                        total += sums[x]
                    out[k, i, j] = total * inverse
            if whole < nw:
                total = np.float32(0.0)
                for x in range(whole * kx, w):
                    total += sums[x]
                out[k, i, whole] = total / np.float32((y1 - y0) * (w - whole * kx))
    return out


@njit(nogil=True, cache=True)
def copy_aligned(region, y0, x0, out, covered):
    """Copy a (c, h, w) region to an (n, n, c) tile where their grids coincide: pixel (i, j) is (y0 + i, x0 + j)."""
    n, m, channels = out.shape
    h, w = region.shape[1:]
    for i in range(max(0, -y0), min(n, h - y0)):
        for j in range(max(0, -x0), min(m, w - x0)):
            if not covered[i, j]:
                covered[i, j] = True
                for k in range(channels):
                    out[i, j, k] = region[k, y0 + i, x0 + j]


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def warp(region, matrix, bounds, supersample, half, out, covered):
    """Sample a (c, h, w) region of at least 2 x 2 pixels into an (n, n, c) tile by bilinear interpolation."""
    channels, h, w = region.shape
    flat = region.reshape(channels, h * w)
    n, m = covered.shape
    step = 1.0 / supersample
    inverse = np.float32(1.0 / (supersample * supersample))
    inside = np.empty(m, np.bool_)
    corner = np.empty(m, np.uint32)
    fy, fx = np.empty(m, np.float32), np.empty(m, np.float32)
    sums = np.empty((channels, m), np.float32)
    right, below = np.uint32(1), np.uint32(w)
    # Row by row: first where each pixel lies, then channel by channel what is there, so that the loops vectorise.
    for i in range(n):
        for j in range(m):
            y = matrix[0, 0] * (i + 0.5) + matrix[0, 1] * (j + 0.5) + matrix[0, 2]
            x = matrix[1, 0] * (i + 0.5) + matrix[1, 1] * (j + 0.5) + matrix[1, 2]
            within = (y >= bounds[0]) & (y < bounds[1]) & (x >= bounds[2]) & (x < bounds[3])
            inside[j] = within & (not covered[i, j])
        sums[:] = np.float32(0.0)
        for a in range(supersample):
            for b in range(supersample):
                for j in range(m):
                    si, sj = i + (a + 0.5) * step, j + (b + 0.5) * step
                    v = matrix[0, 0] * si + matrix[0, 1] * sj + matrix[0, 2] - 0.5
                    u = matrix[1, 0] * si + matrix[1, 1] * sj + matrix[1, 2] - 0.5
                    v, u = min(max(v, 0.0), h - 1.0), min(max(u, 0.0), w - 1.0)
                    y0, x0 = min(int(v), h - 2), min(int(u), w - 2)
                    corner[j] = y0 * w + x0
                    fy[j], fx[j] = v - y0, u - x0
                for k in range(channels):
                    plane = flat[k]
                    for j in range(m):
                        p = corner[j]
                        a0, a1 = np.float32(plane[p]), np.float32(plane[p + right])
                        b0, b1 = np.float32(plane[p + below]), np.float32(plane[p + below + right])
                        top, bottom = a0 + (a1 - a0) * fx[j], b0 + (b1 - b0) * fx[j]
                        sums[k, j] += top + (bottom - top) * fy[j]
        for j in range(m):
            if inside[j]:
                covered[i, j] = True
                for k in range(channels):
                    # Storing in an integer tile cuts off; half a level more, away from zero, makes it round.
                    value = sums[k, j] * inverse
                    out[i, j, k] = value + (half if value >= 0 else -half)


@njit(nogil=True, cache=True)
def add_weighted(tile, weight, total, weights, i0, j0):
    """Add a (px, px, 3) tile times its (px, px) weight to a block's running sums, cut at the block's border."""
    n, m = weight.shape
    height, width, channels = total.shape
    for i in range(max(0, -i0), min(n, height - i0)):
        for j in range(max(0, -j0), min(m, width - j0)):
            weights[i0 + i, j0 + j] += weight[i, j]
            for k in range(channels):
                total[i0 + i, j0 + j, k] += weight[i, j] * tile[i, j, k]


@njit(nogil=True, cache=True)
def divide_to_uint8(total, weights, fill, out):
    """Running sums to a (3, h, w) uint8 block; pixels that no tile covered take ``fill``."""
    height, width, channels = total.shape
    for i in range(height):
        for j in range(width):
            weight = weights[i, j]
            for k in range(channels):
                value = total[i, j, k] / weight if weight > 0.0 else fill
                out[k, i, j] = np.uint8(min(max(math.floor(value + 0.5), 0.0), 255.0))


@njit(nogil=True, cache=True)
def halve(image):
    """2 x 2 means of a (c, h, w) uint8 image of even size, rounded half up."""
    c, h, w = image.shape
    out = np.empty((c, h // 2, w // 2), np.uint8)
    for k in range(c):
        for i in range(h // 2):
            for j in range(w // 2):
                total = (
                    np.uint32(image[k, 2 * i, 2 * j])
                    + image[k, 2 * i, 2 * j + 1]
                    + image[k, 2 * i + 1, 2 * j]
                    + image[k, 2 * i + 1, 2 * j + 1]
                )
                out[k, i, j] = np.uint8((total + 2) >> 2)
    return out


@njit(nogil=True, cache=True)
def count_points(x, y, keep, x0, y0, bin_um, grid):
    """Add points to a (rows, columns) histogram; returns how many fell into it."""
    rows, columns = grid.shape
    n_inside = 0
    for i in range(x.size):
        if not keep[i]:
            continue
        column = math.floor((x[i] - x0) / bin_um)
        row = math.floor((y[i] - y0) / bin_um)
        if 0 <= row < rows and 0 <= column < columns:
            grid[row, column] += 1
            n_inside += 1
    return n_inside


@njit(nogil=True, cache=True)
def fill_polygons(points, rings, polygons, values, image):
    """Fill polygons row by row: cells whose centre lies inside by the even-odd rule over all rings."""
    rows, columns = image.shape
    for p in range(polygons.size - 1):
        first, last = rings[polygons[p]], rings[polygons[p + 1]]
        crossings = np.empty(last - first, np.float64)
        low, high = np.inf, -np.inf
        for k in range(first, last):
            low, high = min(low, points[k, 1]), max(high, points[k, 1])
        for i in range(max(0, math.ceil(low - 0.5)), min(rows, math.floor(high - 0.5) + 1)):
            y = i + 0.5
            n = 0
            for r in range(polygons[p], polygons[p + 1]):
                for k in range(rings[r], rings[r + 1] - 1):
                    y0, y1 = points[k, 1], points[k + 1, 1]
                    if (y0 <= y) != (y1 <= y):
                        crossings[n] = points[k, 0] + (y - y0) / (y1 - y0) * (points[k + 1, 0] - points[k, 0])
                        n += 1
            crossings[:n].sort()
            for c in range(0, n - 1, 2):
                for j in range(max(0, math.ceil(crossings[c] - 0.5)), min(columns, math.ceil(crossings[c + 1] - 0.5))):
                    image[i, j] = values[p]
