"""What is known of the samples of HEST-1k."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._reading import reader
from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

# HEST's names of what has another name here.
RENAMED = {
    "st_technology": "technology",
    "preservation_method": "preservation",
    "pixel_size_um_estimated": "mpp",
    "pixel_size_um_embedded": "mpp_embedded",
    "disease_state": "disease",
    "oncotree_code": "oncotree",
    "license": "licence",
    "dataset_title": "batch",
}
FIRST = [
    "patient",
    "batch",
    "organ",
    "tissue",
    "technology",
    "species",
    "preservation",
    "disease",
    "disease_comment",
    "oncotree",
    "mpp",
    "mpp_embedded",
    "licence",
]
# What is kept with a sample beside its name, patient and batch.
FACTS = [name for name in FIRST if name not in {"patient", "batch", "mpp", "mpp_embedded"}] + ["subseries"]
CSV = re.compile(r"HEST_v(\d+)_(\d+)_(\d+)\.csv$")


@reader
def hest_table(path: str | Path) -> pd.DataFrame:
    r"""Patient, organ, technology and more of each sample of HEST-1k, to choose from.

    Parameters
    ----------
    path
        The metadata table (``HEST_v1_1_0.csv``); or a folder, whose newest such table is taken, else the files
        ``metadata/<id>.json``.

    Returns
    -------
    A DataFrame indexed by the id of the sample, with these columns where HEST has them: ``patient``, ``batch`` (the
    title of the study), ``organ``, ``tissue``, ``technology`` (``"Visium"``, ``"Visium HD"``, ``"Xenium"``,
    ``"Spatial Transcriptomics"``), ``species``, ``preservation``, ``disease``, ``disease_comment``, ``oncotree``,
    ``mpp`` (µm per pixel, HEST's ``pixel_size_um_estimated``), ``mpp_embedded``, ``licence``; then HEST's further
    columns as they are.

    HEST counts the patients of each study from 1. They are named ``"<study>: Patient 1"`` here, so that no two are
    taken for one, and are missing where HEST does not say; a study without patients should be kept together
    (``batch``). Verbs that take a table of samples take this one.

    Raises
    ------
    FileNotFoundError
        If there is neither a table nor a file of metadata.
    KeyError
        If the table has no column ``id``.
    ValueError
        If it is truncated or empty, has a sample twice, or has text for ``pixel_size_um_estimated``.

    Examples
    --------
    >>> import pathlib, tempfile, sthist
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "HEST_v1_1_0.csv"
    >>> _ = path.write_text("id,dataset_title,patient,organ\nT1,A study,Patient 1,Lung\nT2,A study,,Skin\n")
    >>> table = sthist.io.hest_table(path)
    >>> table.index[table.organ == "Lung"].tolist()
    ['T1']
    >>> table.patient["T1"]
    'A study: Patient 1'
    """
    import pandas as pd

    path = Path(path)
    file = path if path.is_file() else _newest_table(path)
    if file is not None:
        frame = _checked(file)
    else:
        records = checks.files_like(path / "metadata", "*.json")
        if not records:
            raise FileNotFoundError(
                f"{path} has neither a table of metadata such as HEST_v1_1_0.csv nor files metadata/<id>.json."
            )
        frame = pd.DataFrame([checks.read_json(record) | {"id": record.stem} for record in records])
        frame = _checked(path / "metadata", frame)
    if "patient" in frame:
        frame["patient"] = [patient_of(record) for record in frame.to_dict("records")]
    frame = frame.rename(columns=RENAMED).rename_axis("id")
    frame = frame[[*(name for name in FIRST if name in frame), *(name for name in frame if name not in FIRST)]]
    return frame.infer_objects()


def _newest_table(folder: Path) -> Path | None:
    tables = {}
    for file in (file for kind in ("", "assets/", "metadata/") for file in checks.files_like(folder, f"{kind}*.csv")):
        match = CSV.search(file.name)
        if match:
            tables[tuple(map(int, match.groups()))] = file
    return tables[max(tables)] if tables else None


def _checked(path: Path, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """A table, by default that of the file, by id, each there once, and with numbers where they should be."""
    import pandas as pd

    if frame is None:
        frame = checks.read_csv(path, ["id"], dtype={"id": str})
    if frame["id"].isna().any():
        raise ValueError(
            f"{path}: column 'id' is empty in row {int(frame['id'].isna().to_numpy().argmax())}. Is the file truncated?"
        )
    again = frame["id"].duplicated()
    if again.any():
        raise ValueError(
            f"{path}: column 'id' has {plain(frame['id'][again].iloc[0])!r} more than once. Remove the wrong row."
        )
    frame = frame.set_index("id")
    for name in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        if name in frame:
            checks.require_numbers(path, frame[frame[name].notna()], [name])
            frame[name] = pd.to_numeric(frame[name])
    return frame


def read_record(root: Path, name: str, file: Path | None) -> tuple[Path, dict[str, Any]]:
    """The metadata of one sample, under HEST's names, and their file."""
    if file is not None:
        return file, _known(checks.read_json(file))
    table = _newest_table(root)
    if table is None:
        raise FileNotFoundError(
            f"{root} has no metadata of sample {name!r}: neither metadata/{name}.json nor a table such as "
            "HEST_v1_1_0.csv."
        )
    frame = _checked(table)
    if name not in frame.index:
        raise KeyError(
            f"{table} has no sample {name!r} in its column 'id'. Add metadata/{name}.json, or take the newest table."
        )
    return table, _known(frame.loc[name].to_dict())


def _known(record: Mapping[Any, Any]) -> dict[str, Any]:
    """The same with None where HEST's files have NaN."""
    return {str(key): None if value != value else value for key, value in record.items()}


def patient_of(record: Mapping[Any, Any]) -> str | None:
    """The patient of a sample, named with the study, since every study counts its own from 1."""
    patient, study = record.get("patient"), record.get("dataset_title")
    if patient is None or patient != patient or not str(patient).strip():
        return None
    return f"{study}: {patient}" if isinstance(study, str) and study else str(patient)


def facts_of(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept with a sample, as plain values."""
    renamed = {RENAMED.get(key, key): value for key, value in record.items()}
    facts = {key: renamed.get(key) for key in FACTS}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in facts.items()}
    return {"patient": patient_of(record), "batch": renamed.get("batch"), "source": "HEST-1k", **plain}
