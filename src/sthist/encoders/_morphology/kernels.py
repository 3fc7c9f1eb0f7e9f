"""The inner loops of the ``morphology`` encoder: stains, distributions and texture of one tile.

All of them release the GIL and none runs in parallel by itself: threads over tiles do.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

N_BINS, BINS_PER_UNIT = 1024, 256.0  # histogram of stain amounts: 0 to 4 in steps of 1/256; what is more counts as 4
FLAT_VARIANCE = 1e-8  # variance below which values count as constant, so that rounding is not taken for texture
GRADIENT_NOISE = 1e-3  # added to the squared Sobel response that a direction is measured against: a flat area has none


@njit(nogil=True, cache=True)
def separate(tile, density_of, inverse, tissue_density):
    """Stains of an (n, n, 3) tile: (4, n, n) haematoxylin, eosin, mean optical density, and whether it is tissue.

    ``density_of`` holds the optical density of each of 256 grey levels, ``inverse`` (3, 2) takes densities to amounts.
    """
    n, m = tile.shape[:2]
    planes = np.empty((4, n, m), np.float32)
    for i in range(n):
        for j in range(m):
            red, green, blue = density_of[tile[i, j, 0]], density_of[tile[i, j, 1]], density_of[tile[i, j, 2]]
            for k in range(2):
                amount = red * inverse[0, k] + green * inverse[1, k] + blue * inverse[2, k]
                planes[k, i, j] = max(amount, np.float32(0.0))
            mean = (red + green + blue) / np.float32(3.0)
            planes[2, i, j] = mean
            planes[3, i, j] = np.float32(1.0) if mean > tissue_density else np.float32(0.0)
    return planes


@njit(nogil=True, cache=True)
def moments(values, weight):
    """Mean, standard deviation and skewness of values where the weight is at least a half; 0 where none is."""
    flat, w = values.ravel(), weight.ravel()
    n, first = 0, 0.0
    for i in range(flat.size):
        if w[i] >= 0.5:
            n += 1
            first += flat[i]
    if n == 0:
        return 0.0, 0.0, 0.0
    mean, second, third = first / n, 0.0, 0.0
    for i in range(flat.size):
        if w[i] >= 0.5:
            d = flat[i] - mean
            second += d * d
            third += d * d * d
    second, third = second / n, third / n
    if second < FLAT_VARIANCE:
        return mean, 0.0, 0.0
    return mean, math.sqrt(second), third / second**1.5


@njit(nogil=True, cache=True)
def correlation(a, b, weight):
    """Pearson correlation of two planes where the weight is at least a half; 0 where one of them is constant."""
    a, b, w = a.ravel(), b.ravel(), weight.ravel()
    n, mean_a, mean_b = 0, 0.0, 0.0
    for i in range(a.size):
        if w[i] >= 0.5:
            n += 1
            mean_a += a[i]
            mean_b += b[i]
    if n == 0:
        return 0.0
    mean_a, mean_b = mean_a / n, mean_b / n
    aa, bb, ab = 0.0, 0.0, 0.0
    for i in range(a.size):
        if w[i] >= 0.5:
            da, db = a[i] - mean_a, b[i] - mean_b
            aa += da * da
            bb += db * db
            ab += da * db
    if min(aa, bb) < n * FLAT_VARIANCE:
        return 0.0
    return ab / math.sqrt(aa * bb)


@njit(nogil=True, cache=True)
def quantiles(values, weight, shares, scale):
    """Quantiles of values times ``scale``, exact to one bin of 1/256, where the weight is at least a half; else 0."""
    flat, w = values.ravel(), weight.ravel()
    counts = np.zeros(N_BINS, np.int64)
    n = 0
    for i in range(flat.size):
        if w[i] >= 0.5:
            counts[min(N_BINS - 1, int(flat[i] * scale * BINS_PER_UNIT + 0.5))] += 1
            n += 1
    out = np.zeros(shares.size)
    if n == 0:
        return out
    for k in range(shares.size):
        wanted, seen, bin_ = shares[k] * n, 0, 0
        while bin_ < N_BINS - 1 and seen + counts[bin_] < wanted:
            seen += counts[bin_]
            bin_ += 1
        out[k] = bin_ / BINS_PER_UNIT
    return out


@njit(nogil=True, cache=True)
def shrink(planes, m):
    """Means of (c, n, n) planes over m x m equal squares, which cut pixels where they must; m is at most n.

    Symmetric under rotations by 90 degrees and flips.
    """
    c, n = planes.shape[:2]
    if m == n:
        return planes.copy()
    width = n / m
    rows = np.zeros((c, m, n), np.float32)
    out = np.zeros((c, m, m), np.float32)
    for i in range(m):
        low, high = i * width, (i + 1) * width
        for y in range(int(low), min(n, math.ceil(high))):
            part = np.float32((min(high, y + 1.0) - max(low, float(y))) / width)
            for k in range(c):
                for x in range(n):
                    rows[k, i, x] += part * planes[k, y, x]
    for j in range(m):
        low, high = j * width, (j + 1) * width
        for x in range(int(low), min(n, math.ceil(high))):
            part = np.float32((min(high, x + 1.0) - max(low, float(x))) / width)
            for k in range(c):
                for i in range(m):
                    out[k, i, j] += part * rows[k, i, x]
    return out


@njit(nogil=True, cache=True)
def binomial(plane):
    """A plane smoothed with (1, 2, 1) / 4 along both axes; its border pixels are repeated outwards."""
    n, m = plane.shape
    rows, out = np.empty_like(plane), np.empty_like(plane)
    quarter, half = np.float32(0.25), np.float32(0.5)
    for i in range(n):
        up, down = max(0, i - 1), min(n - 1, i + 1)
        for j in range(m):
            rows[i, j] = quarter * (plane[up, j] + plane[down, j]) + half * plane[i, j]
    for i in range(n):
        for j in range(m):
            left, right = max(0, j - 1), min(m - 1, j + 1)
            out[i, j] = quarter * (rows[i, left] + rows[i, right]) + half * rows[i, j]
    return out


@njit(nogil=True, cache=True)
def coherence(plane, weight):
    """How much one direction prevails, 0 to 1: near each pixel, and over the whole plane.

    Of the structure tensor of Sobel derivatives, smoothed with (1, 2, 1) / 4: the difference of its eigenvalues over
    their sum, both summed over pixels whose weight is at least a half, so that strong edges count most.
    """
    n, m = plane.shape
    yy, xx, xy = np.empty_like(plane), np.empty_like(plane), np.empty_like(plane)
    for i in range(n):
        up, down = max(0, i - 1), min(n - 1, i + 1)
        for j in range(m):
            left, right = max(0, j - 1), min(m - 1, j + 1)
            a, b, c = plane[up, left], plane[up, j], plane[up, right]
            d, e = plane[i, left], plane[i, right]
            f, g, h = plane[down, left], plane[down, j], plane[down, right]
            dy = (f + g + g + h) - (a + b + b + c)
            dx = (c + e + e + h) - (a + d + d + f)
            yy[i, j], xx[i, j], xy[i, j] = dy * dy, dx * dx, dy * dx
    yy, xx, xy = binomial(yy), binomial(xx), binomial(xy)
    count, spread, total, all_yy_xx, all_xy = 0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        for j in range(m):
            if weight[i, j] >= 0.5:
                difference, product = float(yy[i, j] - xx[i, j]), 2.0 * xy[i, j]
                spread += math.sqrt(difference * difference + product * product)
                total += yy[i, j] + xx[i, j]
                all_yy_xx += difference
                all_xy += product
                count += 1
    if count == 0:
        return 0.0, 0.0
    total += GRADIENT_NOISE * count
    return spread / total, math.sqrt(all_yy_xx**2 + all_xy**2) / total


@njit(nogil=True, cache=True)
def neighbour_correlation(plane, weight):
    """Correlation of a plane with its four neighbours, where both have a weight of at least a half."""
    mean, sd, _ = moments(plane, weight)
    if sd == 0.0:
        return 0.0
    n, m = plane.shape
    count, total = 0, 0.0
    for i in range(n):
        for j in range(m):
            if weight[i, j] < 0.5:
                continue
            if i + 1 < n and weight[i + 1, j] >= 0.5:
                total += (plane[i, j] - mean) * (plane[i + 1, j] - mean)
                count += 1
            if j + 1 < m and weight[i, j + 1] >= 0.5:
                total += (plane[i, j] - mean) * (plane[i, j + 1] - mean)
                count += 1
    return min(1.0, max(-1.0, total / (count * sd * sd))) if count else 0.0


@njit(nogil=True, cache=True)
def binary_patterns(plane, weight, tolerance):
    """Shares of the ten rotation-invariant uniform local binary patterns of 8 neighbours, of inner pixels with weight.

    A neighbour is a 1 where it exceeds the centre by ``tolerance`` or more. Patterns 0 to 8 have that many ones in one
    run, pattern 9 has several runs. The ring is the 3 x 3 square itself: no rotation by 90 degrees changes a
    comparison.
    """
    n, m = plane.shape
    counts = np.zeros(10)
    count = 0
    ring = np.empty(8, np.int64)
    for i in range(1, n - 1):
        for j in range(1, m - 1):
            if weight[i, j] < 0.5:
                continue
            limit = plane[i, j] + tolerance
            ring[0], ring[1], ring[2] = (
                plane[i - 1, j - 1] >= limit,
                plane[i - 1, j] >= limit,
                plane[i - 1, j + 1] >= limit,
            )
            ring[3], ring[4], ring[5] = plane[i, j + 1] >= limit, plane[i + 1, j + 1] >= limit, plane[i + 1, j] >= limit
            ring[6], ring[7] = plane[i + 1, j - 1] >= limit, plane[i, j - 1] >= limit
            ones, changes = 0, 0
            for k in range(8):
                ones += ring[k]
                changes += ring[k] != ring[k - 1]
            counts[ones if changes <= 2 else 9] += 1.0
            count += 1
    return counts / max(1, count)


@njit(nogil=True, cache=True)
def centre_and_rim(plane, weight):
    """Mean inside the circle that covers half of the square, and mean outside, of pixels with weight; 0 of none."""
    n, m = plane.shape
    radius2 = n * m / (2.0 * math.pi)
    inner, n_inner, outer, n_outer = 0.0, 0, 0.0, 0
    for i in range(n):
        for j in range(m):
            if weight[i, j] < 0.5:
                continue
            if (i - (n - 1) / 2.0) ** 2 + (j - (m - 1) / 2.0) ** 2 < radius2:
                inner += plane[i, j]
                n_inner += 1
            else:
                outer += plane[i, j]
                n_outer += 1
    return inner / max(1, n_inner), outer / max(1, n_outer), min(n_inner, n_outer) > 0
