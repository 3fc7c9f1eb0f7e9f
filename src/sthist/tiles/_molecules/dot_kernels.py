"""The inner loops of drawing transcripts and of choosing tiles; they release the GIL and none runs in parallel."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def disc_coverage(radius, n_offsets, n_lines):
    """Part of each pixel that a disc covers, for centres on a lattice of offsets within the middle pixel.

    Each pixel is cut into ``n_lines`` lines along x, on which the overlap with the disc is exact.

    Returns float32 of shape (n_offsets, n_offsets, k, k): offset along y, along x, then pixel rows and columns, the
    centre lying in the middle pixel.
    """
    half = int(math.ceil(radius))
    k = 2 * half + 1
    table = np.zeros((n_offsets, n_offsets, k, k), np.float32)
    for oy in range(n_offsets):
        cy = half + (oy + 0.5) / n_offsets
        for ox in range(n_offsets):
            cx = half + (ox + 0.5) / n_offsets
            for i in range(k):
                for line in range(n_lines):
                    dy = i + (line + 0.5) / n_lines - cy
                    if abs(dy) >= radius:
                        continue
                    chord = math.sqrt(radius * radius - dy * dy)
                    for j in range(k):
                        overlap = min(j + 1.0, cx + chord) - max(float(j), cx - chord)
                        if overlap > 0:
                            table[oy, ox, i, j] += np.float32(overlap / n_lines)
    return table


@njit(nogil=True, cache=True)
def draw_dots(tile, x, y, gene, starts, n_columns, cells, corner, cell_um, mpp, table, colours):
    """Blend the points of a box of cells onto a tile, cell by cell, each as a disc of its gene's colour."""
    height, width = tile.shape[:2]
    n_offsets, k = table.shape[0], table.shape[2]
    half = k // 2
    for row in range(cells[0], cells[1]):
        for column in range(cells[2], cells[3]):
            left, top = corner[0] + column * cell_um, corner[1] + row * cell_um
            cell = row * n_columns + column
            for p in range(starts[cell], starts[cell + 1]):
                px, py = (left + x[p]) / mpp, (top + y[p]) / mpp
                j0, i0 = math.floor(px), math.floor(py)
                if i0 + half < 0 or i0 - half >= height or j0 + half < 0 or j0 - half >= width:
                    continue
                red, green, blue = colours[gene[p], 0], colours[gene[p], 1], colours[gene[p], 2]
                # A hair below a whole number, the difference rounds up to 1.
                oy = min(int((py - i0) * n_offsets), n_offsets - 1)
                ox = min(int((px - j0) * n_offsets), n_offsets - 1)
                for a in range(max(0, half - i0), min(k, height - i0 + half)):
                    i = i0 - half + a
                    for b in range(max(0, half - j0), min(k, width - j0 + half)):
                        alpha = table[oy, ox, a, b]
                        if alpha > 0:
                            j = j0 - half + b
                            keep = np.float32(1.0) - alpha
                            tile[i, j, 0] = np.uint8(keep * tile[i, j, 0] + alpha * red + np.float32(0.5))
                            tile[i, j, 1] = np.uint8(keep * tile[i, j, 1] + alpha * green + np.float32(0.5))
                            tile[i, j, 2] = np.uint8(keep * tile[i, j, 2] + alpha * blue + np.float32(0.5))


@njit(nogil=True, cache=True)
def grey_tile(stain, low, high, out):
    """A stain between two limits as grey levels from 0 to 255 in three equal channels of uint8."""
    factor = 255.0 / (high - low)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            level = np.uint8(min(max((stain[i, j] - low) * factor, 0.0), 255.0) + 0.5)
            out[i, j, 0] = level
            out[i, j, 1] = level
            out[i, j, 2] = level


@njit(nogil=True, cache=True)
def place_points(cell, x, y, gene, following, sorted_x, sorted_y, sorted_gene):
    """Put points where those of their cell go on, in their order; a negative cell leaves a point out."""
    for i in range(cell.size):
        if cell[i] >= 0:
            place = following[cell[i]]
            sorted_x[place], sorted_y[place], sorted_gene[place] = x[i], y[i], gene[i]
            following[cell[i]] = place + 1


@njit(nogil=True, cache=True)
def farthest_first(points, squared, start, n):
    """Go on choosing points, each the farthest from all that were chosen; the first of equally far ones.

    Returns their indices, and the one that would come next.
    """
    chosen = np.empty(n, np.int64)
    current = start
    for step in range(n):
        chosen[step] = current
        squared[current] = -1.0
        cx, cy = points[current, 0], points[current, 1]
        best, farthest = current, -1.0
        for i in range(points.shape[0]):
            dx, dy = points[i, 0] - cx, points[i, 1] - cy
            d = min(squared[i], dx * dx + dy * dy)
            squared[i] = d
            if d > farthest:
                best, farthest = i, d
        current = best
    return chosen, current


@njit(nogil=True, cache=True)
def count_by_cell(gene, starts, number, n_groups):
    """How many molecules there are in each cell (first), and of each group."""
    counts = np.zeros((n_groups, starts.size - 1), np.int64)
    for cell in range(starts.size - 1):
        for p in range(starts[cell], starts[cell + 1]):
            counts[0, cell] += 1
            group = number[gene[p]]
            if group > 0:
                counts[group, cell] += 1
    return counts


@njit(nogil=True, cache=True)
def bin_points(x, y, gene, starts, n_columns, cells, corner, cell_um, bin_um, number, counts):
    """Add the molecules of a box of cells to the counts of their bin: of all (first), and of their gene's group."""
    rows, columns = counts.shape[1:]
    for row in range(cells[0], cells[1]):
        for column in range(cells[2], cells[3]):
            left, top = corner[0] + column * cell_um, corner[1] + row * cell_um
            cell = row * n_columns + column
            for p in range(starts[cell], starts[cell + 1]):
                j, i = math.floor((left + x[p]) / bin_um), math.floor((top + y[p]) / bin_um)
                if 0 <= i < rows and 0 <= j < columns:
                    counts[0, i, j] += 1
                    group = number[gene[p]]
                    if group > 0:
                        counts[group, i, j] += 1
