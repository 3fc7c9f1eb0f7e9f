"""Lay an image on the rest of its sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _alignment, _elements, _store
from sthist._settings import logger, settings
from sthist.pp._auto_align import find_alignment

if TYPE_CHECKING:
    from spatialdata import SpatialData


def align(
    sdata: SpatialData,
    image: str,
    to: str | None = None,
    *,
    matrix: Any = None,
    landmarks: Any = None,
    seed: int | None = None,
) -> None:
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
        ``*_he_imagealignment.csv``. Or ``"auto"``: it is found by laying the haematoxylin of the H&E on the nuclear stain
        ``to``, from where the image lies now or from anywhere: any turn, either side up, a shift, and up to 5 % of scale.
    landmarks
        Point pairs, at least three: a pair of (n, 2) arrays (points of the image, points of ``to``), or a frame or csv
        file with the columns ``alignmentX``, ``alignmentY``, ``fixedX``, ``fixedY`` (Xenium Explorer) or ``moving_x``,
        ``moving_y``, ``fixed_x``, ``fixed_y``. The affine with the least squared distances is taken.

    seed
        Of the automatic search; ``settings.seed`` by default.

    Returns
    -------
    None. Writes the image's transformations to ``um`` and to the other coordinate systems of ``to`` and of its own (those
    that nothing else ties to ``um`` are removed), and
    ``sdata.attrs["sthist"]["alignment"][image]`` (``matrix_to_um``, ``mpp``, and ``residuals_um`` of the landmarks, or
    the overlap ``score_before`` and ``score_after`` and the patches that agree);
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
        what the image's metadata state; if an automatic search finds nothing in common, or nothing better than before.

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
    found: dict[str, Any] = {}
    if isinstance(matrix, str) and matrix == "auto":
        automatic = find_alignment(sdata, image, to, seed=settings.seed if seed is None else seed)
        alignment, to, found = _alignment.Alignment(automatic.to_um), _elements.UM, automatic.facts
    elif matrix is not None:
        alignment = _alignment.Alignment(_alignment.read_matrix(matrix))
    else:
        alignment = _alignment.from_landmarks(*_alignment.read_landmarks(landmarks))
    previous = dict(get_transformation(element, get_all=True))
    records = sdata.attrs.setdefault("sthist", {}).setdefault("alignment", {})
    record = records.get(image)
    facts = _alignment.align(sdata, image, alignment, to)
    records[image] = _store.provenance("pp.align", **facts, **found)
    written = False
    try:
        _store.write_transformations(sdata, [image])
        written = True
    finally:
        if not written:  # the object goes on to say what its store says
            set_transformation(element, previous, set_all=True)
            records.pop(image) if record is None else records.update({image: record})
    if found:
        before = "" if found["score_before"] is None else f"from {found['score_before']:.2f} "
        logger.info(
            "Overlap %sto %.2f; %d of %d patches agree, to %.2f µm.",
            before,
            found["score_after"],
            found["patches_that_agree"],
            found["patches"],
            found["median_residual_um"],
        )
    if facts["residuals_um"] is not None:
        logger.info(
            "%d landmarks; the largest lies %.2f µm from where the affine puts it.",
            len(facts["residuals_um"]),
            max(facts["residuals_um"]),
        )
