"""Results written to a user's store: complete, or not at all."""

from sthist._store.commit import WORK
from sthist._store.identity import content_of
from sthist._store.names import check_name, inside
from sthist._store.store import (
    add,
    changing,
    provenance,
    publish,
    recover,
    replace_table,
    require_free,
    require_free_in_store,
    store_path,
    working_folder,
    workspace,
    writing,
)

__all__ = [
    "WORK",
    "add",
    "changing",
    "check_name",
    "content_of",
    "inside",
    "provenance",
    "publish",
    "recover",
    "replace_table",
    "require_free",
    "require_free_in_store",
    "store_path",
    "working_folder",
    "workspace",
    "writing",
]
