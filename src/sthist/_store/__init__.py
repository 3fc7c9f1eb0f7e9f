"""Results written to a user's store: complete, or not at all."""

from sthist._store.commit import WORK
from sthist._store.identity import content_of
from sthist._store.store import (
    add,
    provenance,
    publish,
    replace_table,
    require_free,
    store_path,
    working_folder,
    workspace,
    write_attributes,
    write_transformations,
    writing,
)

__all__ = [
    "WORK",
    "add",
    "content_of",
    "provenance",
    "publish",
    "replace_table",
    "require_free",
    "store_path",
    "working_folder",
    "workspace",
    "write_attributes",
    "write_transformations",
    "writing",
]
