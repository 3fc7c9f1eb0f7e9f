"""The inner loops of finding nuclei: depth, summits, what they hold, outlines.

What happens to a pixel depends on what lies near it and on the order of rows and columns alone, never on where the
window begins: nuclei are the same in whatever windows an image is read.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

COLUMNS = ("first", "n", "sum_y", "sum_x", "low_y", "high_y", "low_x", "high_x")
"""Whole numbers that :func:`measure` counts of each label: its first pixel, pixels, sums, and the box around it."""


@njit(nogil=True, cache=True)
def depth(mask, longest):
    """Distance of each pixel of a mask to the nearest one outside of it, in pixels, up to ``longest``."""
    n, m = mask.shape
    down = np.empty((n, m), np.int32)
    for j in range(m):
        run = longest
        for i in range(n):
            run = min(longest, run + 1) if mask[i, j] else 0
            down[i, j] = run
    for j in range(m):
        run = longest
        for i in range(n - 1, -1, -1):
            run = min(longest, run + 1) if mask[i, j] else 0
            down[i, j] = min(down[i, j], run)
    out = np.zeros((n, m), np.float32)
    for i in range(n):
        for j in range(m):
            if not mask[i, j]:
                continue
            best = down[i, j] * down[i, j]
            for step in range(1, longest + 1):
                if step * step >= best:
                    break
                if j >= step:
                    best = min(best, step * step + down[i, j - step] * down[i, j - step])
                if j + step < m:
                    best = min(best, step * step + down[i, j + step] * down[i, j + step])
            out[i, j] = math.sqrt(best)
    return out


@njit(nogil=True, cache=True)
def _root(parent, k):
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(nogil=True, cache=True)
def climb(relief, mask):
    """Label each pixel of a mask by the summit to which the steepest way up leads; (labels from 1, their heights)."""
    n, m = relief.shape
    towards = np.full(n * m, -1, np.int32)
    labels = np.zeros((n, m), np.int32)
    flat = labels.ravel()
    heights = [np.float32(0.0)]
    for i in range(n):
        for j in range(m):
            if not mask[i, j]:
                continue
            best_i, best_j, best = i, j, relief[i, j]
            for y in range(max(0, i - 1), min(n, i + 2)):
                for x in range(max(0, j - 1), min(m, j + 2)):
                    # Of equals the first: two pixels never point at each other.
                    first = relief[y, x] == best and (y < best_i or (y == best_i and x < best_j))
                    if mask[y, x] and (relief[y, x] > best or first):
                        best_i, best_j, best = y, x, relief[y, x]
            towards[i * m + j] = best_i * m + best_j
            if best_i == i and best_j == j:
                flat[i * m + j] = len(heights)
                heights.append(best)
    for start in range(n * m):
        if towards[start] < 0 or flat[start] > 0:
            continue
        end = start
        while flat[end] == 0:
            end = towards[end]
        label, at = flat[end], start
        while flat[at] == 0:
            flat[at] = label
            at = towards[at]
    return labels, np.array(heights, np.float32)


@njit(nogil=True, cache=True)
def saddles(labels, relief):
    """Between labels that touch, where the way from one to the other is highest: (pairs (k, 2), heights)."""
    n, m = labels.shape
    highest = {}
    for i in range(n):
        for j in range(m):
            a = labels[i, j]
            if a == 0:
                continue
            for k in range(4):
                y, x = (i, j + 1) if k == 0 else (i + 1, j - 2 + k)
                if y >= n or x < 0 or x >= m:
                    continue
                b = labels[y, x]
                if b == 0 or b == a:
                    continue
                key = (np.int64(min(a, b)) << 32) | np.int64(max(a, b))
                height = min(relief[i, j], relief[y, x])
                if key not in highest or highest[key] < height:
                    highest[key] = height
    pairs, heights = np.empty((len(highest), 2), np.int32), np.empty(len(highest), np.float32)
    for at, key in enumerate(highest):
        pairs[at, 0], pairs[at, 1], heights[at] = key >> 32, key & 0xFFFFFFFF, highest[key]
    return pairs, heights


@njit(nogil=True, cache=True)
def join(labels, heights, pairs, saddle, order, least, share):
    """Make one of labels whose lower summit rises less than ``least`` plus ``share`` of itself above the saddle.

    Saddles are taken from the highest down, so that what belongs together is together before it meets others.
    """
    parent = np.arange(len(heights)).astype(np.int32)
    top = heights.copy()
    for k in order:
        a, b = _root(parent, pairs[k, 0]), _root(parent, pairs[k, 1])
        lower = min(top[a], top[b])
        if a != b and lower - saddle[k] < least + share * lower:
            a, b = min(a, b), max(a, b)
            parent[b] = a
            top[a] = max(top[a], top[b])
    flat = labels.ravel()
    for k in range(flat.size):
        if flat[k]:
            flat[k] = _root(parent, flat[k])


@njit(nogil=True, cache=True)
def measure(labels, n_labels, planes):
    """What each label holds: whole numbers (:data:`COLUMNS`), and per plane sums and sums of squares, then moments.

    Moments are sums of y, x, y y, x x and x y, counted from the first pixel on.
    """
    n, m = labels.shape
    counts, sums = np.zeros((n_labels + 1, 8), np.int64), np.zeros((n_labels + 1, 2 * planes.shape[0] + 5))
    for i in range(n):
        for j in range(m):
            k = labels[i, j]
            if k == 0:
                continue
            row = counts[k]
            if row[1] == 0:
                row[0], row[4], row[5], row[6], row[7] = i * m + j, i, i, j, j
            row[1] += 1
            row[2] += i
            row[3] += j
            row[5], row[6], row[7] = i, min(row[6], j), max(row[7], j)
            y, x = i - row[0] // m, j - row[0] % m
            here = sums[k]
            for p in range(planes.shape[0]):
                here[2 * p] += planes[p, i, j]
                here[2 * p + 1] += planes[p, i, j] * planes[p, i, j]
            p = 2 * planes.shape[0]
            here[p] += y
            here[p + 1] += x
            here[p + 2] += y * y
            here[p + 3] += x * x
            here[p + 4] += x * y
    return counts, sums


@njit(nogil=True, cache=True)
def trace(labels, firsts, wanted):
    """Outlines of labels, each from its first pixel on: (corners (n, 2) as twice x and y, where each begins).

    They run through the middles of the edges between a pixel of the label and one that is not: so one never crosses
    itself, also where pixels touch by a corner alone.
    """
    n, m = labels.shape
    corners = np.empty((1024, 2), np.int64)
    starts = np.zeros(len(wanted) + 1, np.int64)
    dy, dx = np.array([0, 1, 0, -1]), np.array([1, 0, -1, 0])  # right, down, left, up
    size = 0
    for w in range(len(wanted)):
        label = wanted[w]
        i, j = firsts[w] // m, firsts[w] % m
        # We walk with the label to the right: at first along the top of its first pixel.
        i0, j0, heading0, heading = i, j, 0, 0
        while True:
            if size == len(corners):
                grown = np.empty((2 * size, 2), np.int64)
                grown[:size] = corners
                corners = grown
            # Middle of the edge of pixel (i, j) that lies to the left of the heading, doubled.
            corners[size, 0] = 2 * j + 1 + dx[(heading + 3) % 4]
            corners[size, 1] = 2 * i + 1 + dy[(heading + 3) % 4]
            size += 1
            ahead_i, ahead_j = i + dy[heading], j + dx[heading]
            left_i, left_j = ahead_i + dy[(heading + 3) % 4], ahead_j + dx[(heading + 3) % 4]
            if 0 <= left_i < n and 0 <= left_j < m and labels[left_i, left_j] == label:
                i, j, heading = left_i, left_j, (heading + 3) % 4
            elif 0 <= ahead_i < n and 0 <= ahead_j < m and labels[ahead_i, ahead_j] == label:
                i, j = ahead_i, ahead_j
            else:
                heading = (heading + 1) % 4
            if i == i0 and j == j0 and heading == heading0:
                break
        starts[w + 1] = size
    return corners[:size], starts


@njit(nogil=True, cache=True)
def block_sums(amount, mask, seen, k):
    """Over blocks of k x k pixels that are seen: how many in the mask, their sum, how many outside it, their sum."""
    n, m = amount.shape
    out = np.zeros((4, -(-n // k), -(-m // k)), np.float32)
    for i in range(n):
        for j in range(m):
            if seen[i, j]:
                part = 0 if mask[i, j] else 2
                out[part, i // k, j // k] += np.float32(1.0)
                out[part + 1, i // k, j // k] += amount[i, j]
    return out


@njit(nogil=True, cache=True)
def exceeds(amount, threshold, k):
    """Where an amount exceeds a threshold known at the middles of blocks of k x k pixels, and linear between."""
    n, m = amount.shape
    rows, columns = threshold.shape
    out = np.empty((n, m), np.bool_)
    for i in range(n):
        y = min(max((i + 0.5) / k - 0.5, 0.0), rows - 1.0)
        y0 = min(int(y), max(0, rows - 2))
        y1 = min(y0 + 1, rows - 1)
        v = np.float32(y - y0)
        for j in range(m):
            x = min(max((j + 0.5) / k - 0.5, 0.0), columns - 1.0)
            x0 = min(int(x), max(0, columns - 2))
            x1 = min(x0 + 1, columns - 1)
            u = np.float32(x - x0)
            above = threshold[y0, x0] + u * (threshold[y0, x1] - threshold[y0, x0])
            below = threshold[y1, x0] + u * (threshold[y1, x1] - threshold[y1, x0])
            out[i, j] = amount[i, j] > above + v * (below - above)
    return out
