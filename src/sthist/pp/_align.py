"""Lay an image on the rest of its sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _alignment, _elements, _store
from sthist._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData


def align(sdata: SpatialData, image: str, to: str | None = None, *, matrix: Any = None, landmarks: Any = None) -> None:
    """Register an image, such as the H&E of the same section, by a matrix or by landmarks.

    The pixels stay where they are: only the image's transformation is written. Both matrix and landmarks are in
    full-resolution pixels of the image.

    Parameters
    ----------
    sdata
        One sample.
    image
        Key of the image to register.
    to
        What it is registered to: the key of an image (its full-resolution pixels), or a coordinate system such as
        ``"um"`` or ``"global"``; the nuclear stain by default.
    matrix
        (3, 3) affine from (x, y, 1) of the image to ``to``: an array, or a csv file such as Xenium's
        ``*_he_imagealignment.csv``.
    landmarks
        Point pairs, at least three: a pair of (n, 2) arrays (points of the image, points of ``to``), or a frame or csv
        file with the columns ``alignmentX``, ``alignmentY``, ``fixedX``, ``fixedY`` (Xenium Explorer) or ``moving_x``,
        ``moving_y``, ``fixed_x``, ``fixed_y``. The affine with the least squared distances is taken.

    Returns
    -------
    None. Writes the image's transformations to ``um`` and to the other coordinate systems of ``to`` and of its own (those
    that nothing else ties to ``um`` are removed), and
    ``sdata.attrs["sthist"]["alignment"][image]`` (``matrix_to_um``, ``mpp``, and ``residuals_um`` of the landmarks);
    also to the store of a backed object.

    Raises
    ------
    KeyError
        If there is no such image or frame, or the landmarks lack a column.
    FileNotFoundError
        If there is no such file.
    ValueError
        If neither or both of ``matrix`` and ``landmarks`` are given; if the matrix is singular or projective; if there
        are fewer than three landmarks, or they lie on a line; if the µm/px that follows differs by more than 2 % from
        what the image's metadata state.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> shift = np.array([[1, 0, 24.0], [0, 1, -16.0], [0, 0, 1]])
    >>> sthist.pp.align(sdata, "he", to="morphology_focus", matrix=shift)
    >>> sthist.scale.matrix_to(sdata["he"])[:2, 2]
    array([12., -8.])
    """
    from spatialdata.transformations import get_transformation, set_transformation

    if (matrix is None) == (landmarks is None):
        msg = "Give either matrix= or landmarks=."
        raise ValueError(msg)
    element = _elements.get(sdata, "images", image)
    _elements.require_one_sample(sdata)
    if matrix is not None:
        alignment = _alignment.Alignment(_alignment.read_matrix(matrix))
    else:
        alignment = _alignment.from_landmarks(*_alignment.read_landmarks(landmarks))
    before = dict(get_transformation(element, get_all=True))
    records = sdata.attrs.setdefault("sthist", {}).setdefault("alignment", {})
    record = records.get(image)
    facts = _alignment.align(sdata, image, alignment, to)
    records[image] = _store.provenance("pp.align", **facts)
    written = False
    try:
        _store.write_transformations(sdata, [image])
        written = True
    finally:
        if not written:  # the object goes on to say what its store says
            set_transformation(element, before, set_all=True)
            records.pop(image) if record is None else records.update({image: record})
    if facts["residuals_um"] is not None:
        logger.info(
            "%d landmarks; the largest lies %.2f µm from where the affine puts it.",
            len(facts["residuals_um"]),
            max(facts["residuals_um"]),
        )
