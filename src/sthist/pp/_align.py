"""Lay an image on the rest of its sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _alignment, _sample, _store
from sthist._alignment.checks import UNITS
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist.pp._auto_align import find_alignment

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist._alignment.checks import Units


@over_samples
def align(
    sdata: SpatialData,
    image: str,
    to: str | None = None,
    *,
    matrix: Any = None,
    landmarks: Any = None,
    units: Units = "px",
    seed: int | None = None,
) -> None:
    """Register an image, such as the H&E of the same section, by a matrix or by landmarks.

    The pixels stay where they are: only the image's transformation is written.

    A matrix or landmarks lead from one side to another, (x, y) each, x to the right and y down:

    - *The image's side* is in full-resolution pixels of ``image``, the corner of the first one at (0, 0)
      (``units="px"``), or in micrometres from that corner (``units="um"``; the image's µm/px turns them into pixels).
    - *The other side* is the frame ``to``: full-resolution pixels of that image, or units of that coordinate system.
      ``to="um"`` is the sample's own micrometres. ``units`` says nothing of this side.

    What Xenium Explorer exports is in pixels on both sides, from the image to the morphology image: the defaults.

    Parameters
    ----------
    sdata
        One sample, or a mapping of name to sample.
    image
        Key of the image to register.
    to
        What it is registered to: the key of an image (its full-resolution pixels), or a coordinate system such as
        ``"um"`` or ``"global"``; the nuclear stain by default.
    matrix
        (3, 3) affine from (x, y, 1) of the image to ``to``: an array, a csv file such as Xenium's
        ``*_he_imagealignment.csv``, or the zip that Xenium Explorer's "Download alignment file" makes, whose keypoints are
        then compared with its matrix. Or ``"auto"``: it is found by laying the haematoxylin of the H&E on the nuclear stain
        ``to``, from where the image lies now or from anywhere: any turn, either side up, a shift, and up to 5 % of scale.
    landmarks
        Point pairs, at least three: a pair of (n, 2) arrays (points of the image, points of ``to``), a frame or csv
        file with the columns ``alignmentX``, ``alignmentY``, ``fixedX``, ``fixedY`` (Xenium Explorer) or ``moving_x``,
        ``moving_y``, ``fixed_x``, ``fixed_y``, or Xenium Explorer's zip. The affine with the least squared distances is
        taken.
    units
        What the image's side is in: ``"px"`` or ``"um"``. For ``"um"`` the image's µm/px has to be known, from its metadata
        or, without these, from where it lies now.
    seed
        Of the automatic search; ``settings.seed`` by default.

    Returns
    -------
    None. Writes the image's transformations to ``um`` and to the other coordinate systems of ``to`` and of its own (those
    that nothing else ties to ``um`` are removed), and ``sdata.attrs["sthist"]["alignment"][image]``: ``matrix_to_um`` from
    full-resolution pixels, ``mpp``, and ``residuals_um``, the distance in µm of each landmark (also those of a zip) from
    where the alignment puts it, in their order; or the overlap ``score_before`` and ``score_after`` and the patches that
    agree. Also to the store of a backed object.

    Raises
    ------
    KeyError
        If there is no such image or frame, or the landmarks lack a column.
    FileNotFoundError
        If there is no such file.
    ValueError
        If neither or both of ``matrix`` and ``landmarks`` are given; if the matrix is singular or projective; if there
        are fewer than three landmarks, or they lie on a line; if a zip is damaged, lacks what is taken from it, or its
        matrix lies 100 µm or more from its keypoints (a warning from 10 µm); if the µm/px that follows differs by more than
        2 % from what the image's metadata state, or is needed and unknown; if an automatic search finds nothing in common,
        or nothing better than before.

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
    if units not in UNITS:
        msg = f"units={units!r} is none of {list(UNITS)}: pixels or micrometres of the image {image!r}."
        raise ValueError(msg)
    element = _sample.get(sdata, "images", image)
    _sample.require_one_sample(sdata)
    found: dict[str, Any] = {}
    if isinstance(matrix, str) and matrix == "auto":
        if units != "px":
            msg = "units= says what a matrix or landmarks are in; matrix='auto' finds them itself. Leave it out."
            raise ValueError(msg)
        automatic = find_alignment(sdata, image, to, seed=settings.seed if seed is None else seed)
        alignment, to, found = _alignment.Alignment(automatic.to_um), _sample.UM, automatic.facts
    elif matrix is not None:
        alignment = _alignment.from_matrix(matrix)
    else:
        alignment = _alignment.from_landmarks(*_alignment.read_landmarks(landmarks))
    previous = dict(get_transformation(element, get_all=True))
    records = sdata.attrs.setdefault("sthist", {}).setdefault("alignment", {})
    record = records.get(image)
    facts = _alignment.align(sdata, image, alignment, to, units)
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
    _alignment.log_residuals(image, facts)
