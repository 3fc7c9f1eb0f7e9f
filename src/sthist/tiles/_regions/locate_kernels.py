"""Which region holds a point, and counts that grow; these loops release the GIL and none runs in parallel."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def square_of(value, side):
    """Number of the interval [i side, (i + 1) side) that holds a value, by its ends and not by a rounded quotient."""
    number = math.floor(value / side)
    if value < number * side:
        return number - 1
    if value >= (number + 1) * side:
        return number + 1
    return number


@njit(nogil=True, cache=True)
def squares_of(x, y, side, columns, rows):
    """Column and row of the square that holds each point."""
    for i in range(x.size):
        columns[i] = square_of(x[i], side)
        rows[i] = square_of(y[i], side)


@njit(nogil=True, cache=True)
def cell_of(value, origin, cell, n):
    """Number of the cell along one axis, -1 outside; never less for a greater value."""
    place = (value - origin) / cell
    return int(place) if 0 <= place < n else -1


@njit(nogil=True, cache=True)
def list_members(bounds, origin, cell, shape, starts, members):
    """List the regions whose boxes touch a cell, or count them."""
    for region in range(bounds.shape[0]):
        first_column = cell_of(bounds[region, 0], origin[0], cell, shape[1])
        last_column = cell_of(bounds[region, 2], origin[0], cell, shape[1])
        for row in range(
            cell_of(bounds[region, 1], origin[1], cell, shape[0]),
            cell_of(bounds[region, 3], origin[1], cell, shape[0]) + 1,
        ):
            for column in range(first_column, last_column + 1):
                place = row * shape[1] + column
                if members.size:
                    members[starts[place]] = region
                starts[place] += 1


@njit(nogil=True, cache=True)
def count_candidates(x, y, origin, cell, shape, starts):
    """Regions that are listed in the cells of some points, a region once per point."""
    n = 0
    for i in range(x.size):
        column, row = cell_of(x[i], origin[0], cell, shape[1]), cell_of(y[i], origin[1], cell, shape[0])
        if column >= 0 and row >= 0:
            n += starts[row * shape[1] + column + 1] - starts[row * shape[1] + column]
    return n


@njit(nogil=True, cache=True)
def order_by_block(x, y, origin, cell, shape, side):
    """Indices of the points on a grid, by blocks of ``side`` x ``side`` cells, as they come within a block."""
    columns = (shape[1] + side - 1) // side
    starts = np.zeros(columns * ((shape[0] + side - 1) // side) + 1, np.int64)
    blocks = np.empty(x.size, np.int64)
    for i in range(x.size):
        column, row = cell_of(x[i], origin[0], cell, shape[1]), cell_of(y[i], origin[1], cell, shape[0])
        blocks[i] = row // side * columns + column // side if column >= 0 and row >= 0 else -1
        if blocks[i] >= 0:
            starts[blocks[i] + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(starts[-1], np.int64)
    for i in range(x.size):
        if blocks[i] >= 0:
            order[starts[blocks[i]]] = i
            starts[blocks[i]] += 1
    return order


@njit(nogil=True, cache=True)
def band_of(y, low, high, n):
    """Number of the one of ``n`` bands of equal height that holds y; never less for a greater y."""
    return min(int((y - low) / (high - low) * n), n - 1)


@njit(nogil=True, cache=True)
def list_edges(vertex_y, rings, region_rings, bounds, bands, starts, edges):
    """List the edges that touch each band of a region, or count them; horizontal ones cross no line of sight."""
    for region in range(bounds.shape[0]):
        n = bands[region + 1] - bands[region]
        if n == 0:
            continue
        low, high = bounds[region, 1], bounds[region, 3]
        for ring in range(region_rings[region], region_rings[region + 1]):
            for i in range(rings[ring], rings[ring + 1] - 1):
                if vertex_y[i] == vertex_y[i + 1]:
                    continue
                first = band_of(min(vertex_y[i], vertex_y[i + 1]), low, high, n)
                last = band_of(max(vertex_y[i], vertex_y[i + 1]), low, high, n)
                for band in range(bands[region] + first, bands[region] + last + 1):
                    if edges.size:
                        edges[starts[band]] = i
                    starts[band] += 1


@njit(nogil=True, cache=True)
def is_inside(px, py, vertices, starts, edges, band):
    """Whether an odd number of a region's edges lies to the right of a point.

    An edge is [low, high) in y, and its crossing is computed from its lower end whichever way the ring runs: of two
    regions that share an edge, exactly one holds a point on it.
    """
    inside = False
    for e in range(starts[band], starts[band + 1]):
        i = edges[e]
        below = vertices[i, 1] <= py
        if below == (vertices[i + 1, 1] <= py):
            continue
        a, b = (i, i + 1) if below else (i + 1, i)
        ax, ay, bx, by = vertices[a, 0], vertices[a, 1], vertices[b, 0], vertices[b, 1]
        crossing = ax + (py - ay) / (by - ay) * (bx - ax)
        # Rounding must not carry it out of the box, which is tested first.
        if px < min(max(crossing, min(ax, bx)), max(ax, bx)):
            inside = not inside
    return inside


@njit(nogil=True, cache=True)
def locate_in_polygons(
    x, y, origin, cell, shape, starts, members, bounds, vertices, bands, edge_starts, edges, regions, points
):
    """Write the pairs of a region and a point that lies in it, point by point; returns how many."""
    n = 0
    for i in range(x.size):
        column, row = cell_of(x[i], origin[0], cell, shape[1]), cell_of(y[i], origin[1], cell, shape[0])
        if column < 0 or row < 0:
            continue
        place = row * shape[1] + column
        for m in range(starts[place], starts[place + 1]):
            region = members[m]
            low, high = bounds[region, 1], bounds[region, 3]
            if not (bounds[region, 0] <= x[i] < bounds[region, 2] and low <= y[i] < high):
                continue
            n_bands = bands[region + 1] - bands[region]
            if n_bands > 0:  # a rectangle has none, and is its box
                band = bands[region] + band_of(y[i], low, high, n_bands)
                if not is_inside(x[i], y[i], vertices, edge_starts, edges, band):
                    continue
            regions[n], points[n] = region, i
            n += 1
    return n


@njit(nogil=True, cache=True)
def locate_in_circles(x, y, origin, cell, shape, starts, members, centres, radii, inverse, regions, points):
    """As :func:`locate_in_polygons`, for circles; ``inverse`` takes µm to the unit of the radii."""
    n = 0
    for i in range(x.size):
        column, row = cell_of(x[i], origin[0], cell, shape[1]), cell_of(y[i], origin[1], cell, shape[0])
        if column < 0 or row < 0:
            continue
        place = row * shape[1] + column
        for m in range(starts[place], starts[place + 1]):
            region = members[m]
            dx, dy = x[i] - centres[region, 0], y[i] - centres[region, 1]
            u = inverse[0, 0] * dx + inverse[0, 1] * dy
            v = inverse[1, 0] * dx + inverse[1, 1] * dy
            if u * u + v * v <= radii[region] * radii[region]:
                regions[n], points[n] = region, i
                n += 1
    return n


@njit(nogil=True, cache=True)
def count_new(keys, more):
    """Distinct keys of ``more`` that ``keys`` has not; both are sorted, ``keys`` without repeats."""
    n = place = 0
    for j in range(more.size):
        if j > 0 and more[j] == more[j - 1]:
            continue
        while place < keys.size and keys[place] < more[j]:
            place += 1
        if place == keys.size or keys[place] != more[j]:
            n += 1
    return n


@njit(nogil=True, cache=True)
def merge_keys(keys, counts, n, more):
    """Count further keys, in place, from the end on, as there is room for exactly the new ones."""
    old, new, out = n - 1, more.size - 1, keys.size - 1
    while new >= 0:
        key = more[new]
        if old >= 0 and keys[old] > key:
            keys[out], counts[out] = keys[old], counts[old]
            old -= 1
        else:
            seen = 0
            while new >= 0 and more[new] == key:
                seen += 1
                new -= 1
            if old >= 0 and keys[old] == key:
                seen += counts[old]
                old -= 1
            keys[out], counts[out] = key, seen
        out -= 1


@njit(nogil=True, cache=True)
def columns_of(keys, width, columns, indices):
    """Column of each key, its remainder by ``width``, in a new order of columns."""
    for i in range(keys.size):
        indices[i] = columns[keys[i] % width]


@njit(nogil=True, cache=True)
def rows_of(keys, width):
    """Distinct quotients of sorted keys by ``width``."""
    n = 0
    for i in range(keys.size):
        if i == 0 or keys[i] // width != keys[i - 1] // width:
            n += 1
    rows = np.empty(n, np.int64)
    n = 0
    for i in range(keys.size):
        if i == 0 or keys[i] // width != keys[i - 1] // width:
            rows[n] = keys[i] // width
            n += 1
    return rows
