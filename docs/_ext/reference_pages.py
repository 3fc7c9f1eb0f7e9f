"""Reference pages: types from annotations, returns as sentences, links by public name, and links to the source.

Docstrings are numpydoc without types, which the signature states already. Before napoleon reads them, types are put in.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.util.typing import stringify_annotation

import sthist

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/scverse/sthist"
SPACES = ["pp", "tl", "pl", "io", "models", "tiles", "datasets", "encoders", "benchmark", "metrics", "metrics.image"]
SPACES += ["scale", "stains"]
INTERNAL = ["nets", "regression", "systems", "training"]
"""Rooms that have no page, though their names are not private."""

EXTERNAL = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "dask_expr._collection.DataFrame": "dask.dataframe.DataFrame",
    "dask.dataframe.dask_expr._collection.DataFrame": "dask.dataframe.DataFrame",
    "geopandas.geodataframe.GeoDataFrame": "geopandas.GeoDataFrame",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "np.ndarray": "numpy.ndarray",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.series.Series": "pandas.Series",
    "pandas.core.indexes.base.Index": "pandas.Index",
    "pathlib._local.Path": "pathlib.Path",
    "scipy.sparse._base.spmatrix": "scipy.sparse.spmatrix",
    "scipy.sparse._csr.csr_matrix": "scipy.sparse.csr_matrix",
    "spatialdata._core.spatialdata.SpatialData": "spatialdata.SpatialData",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch._tensor.Tensor": "torch.Tensor",
    "xarray.core.dataarray.DataArray": "xarray.DataArray",
}
"""Where classes of others are documented, by where they are defined."""

ARRAY = re.compile(r"~?numpy\.ndarray\[(?:tuple\[.*?\]|~?typing\.Any), ~?numpy\.dtype\[(?:\+?~?[\w.]*)(?:\[.*?\])?\]\]")


def complete_annotations() -> None:
    """Give each module the names that it imports for annotations alone."""
    for module in pkgutil.walk_packages(sthist.__path__, "sthist."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "sthist" or not (file := getattr(module, "__file__", None)):
            continue
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                code = compile(ast.Module(node.body, []), file, "exec")
                exec(code, vars(module))


def public_names() -> dict[str, str]:
    """Public names of classes and functions, by where they are defined."""
    found = {}
    for space in SPACES:
        module: Any = sthist
        for part in space.split("."):
            module = getattr(module, part)
        names = getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]
        for name in names:
            thing = inspect.unwrap(getattr(module, name))
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("sthist"):
                found.setdefault(f"{thing.__module__}.{thing.__qualname__}", f"sthist.{space}.{name}")
    return found


def type_text(annotation: Any) -> str:
    """An annotation as docutils reads it, each class by its public name."""
    if annotation in (None, type(None)):
        return "None"
    text = stringify_annotation(annotation, "smart", short_literals=True)
    return ARRAY.sub("~numpy.ndarray", text)


def hints(thing: Any) -> dict[str, Any]:
    """Annotations of a callable, or of what makes a class."""
    if isinstance(thing, property):
        thing = thing.fget
    if not inspect.isclass(thing):
        return inspect.get_annotations(inspect.unwrap(thing), eval_str=True) if callable(thing) else {}
    known: dict[str, Any] = {}
    for base in reversed(thing.__mro__):
        if base.__module__.split(".")[0] == "sthist":
            known |= inspect.get_annotations(base, eval_str=True)
            makes = vars(base).get("__init__")
            if isinstance(makes, types.FunctionType) and not hasattr(base, "__dataclass_fields__"):
                known |= inspect.get_annotations(makes, eval_str=True)
    return {name: kind for name, kind in known.items() if name != "return"}


def typed(header: str, known: dict[str, Any]) -> list[str]:
    """The names of an entry, each with its type."""
    empty = inspect.Parameter.empty
    kinds = {name: known.get(name.lstrip("*"), empty) for name in header.split(", ")} if ":" not in header else {}
    return [name if kind is empty else f"{name} : {type_text(kind)}" for name, kind in kinds.items()] or [header]


def add_types(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place: types in lists, and a sentence below the type that is returned."""
    known = hints(thing)
    if what in ("attribute", "data", "property"):  # napoleon takes what stands before a colon for the type
        lines[0] = f"{type_text(known['return']) if 'return' in known else ''}: {lines[0]}"
        return
    sections = numpydoc_sections(lines)
    for title, body in sections:
        if title in ("Parameters", "Attributes"):
            body[:] = in_order(body, known)
        elif title in ("Returns", "Yields"):
            kind = known.get("return")
            text = ":" if kind in (None, type(None)) else type_text(kind)
            body[:] = [text, *(f"    {line}" if line else "" for line in body)]
    lines[:] = [line for title, body in sections for line in ([title, "-" * len(title), *body] if title else body)]


def numpydoc_sections(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Titles and lines of a docstring; what stands before the first section has no title."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    i = 0
    while i < len(lines):
        if i + 1 < len(lines) and lines[i] and re.fullmatch(r"-{3,}", lines[i + 1]):
            sections.append((lines[i], []))
            i += 2
        else:
            sections[-1][1].append(lines[i])
            i += 1
    return sections


def in_order(body: list[str], known: dict[str, Any]) -> list[str]:
    """The entries of a section with types; of several names in one entry, the others point to the first."""
    done: list[str] = []
    others: list[str] = []
    for line in [*body, ""]:
        if line and line[0] != " ":
            first, *rest = typed(line, known)
            done += [*others, first]
            others = [text for other in rest for text in (other, f"    See ``{line.split(', ')[0]}``.")]
        elif line:
            done.append(line)
    return [*done, *others, ""]


def skip_foreign(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out members that are inherited from other packages, and fields of named tuples, which a list has."""
    if type(thing).__name__ == "_tuplegetter":
        return True
    thing = thing.fget if isinstance(thing, property) else inspect.unwrap(thing)
    module = getattr(thing, "__module__", None)
    return True if isinstance(module, str) and module.split(".")[0] != "sthist" else None


class Names:
    """Resolves a reference by the public name of what it means."""

    def __init__(self) -> None:
        self.public = public_names()
        self.short: dict[str, list[str]] = {}
        for full in self.public.values():
            self.short.setdefault(full.rsplit(".", 1)[1], []).append(full)

    def meant(self, target: str, page: str) -> str:
        """The public name of a target: of where it is defined, or of its last part, on the page of ``page``."""
        if target in EXTERNAL or target in self.public:
            return EXTERNAL.get(target) or self.public[target]
        head, _, member = target.rpartition(".")
        if head in self.public:
            return f"{self.public[head]}.{member}"
        if target.startswith("sthist.settings"):
            return target.replace("sthist.settings", "sthist._settings.Settings")
        first, _, member = target.partition(".")
        found = self.short.get(first, [])
        if len(found) > 1:  # the one of the same room; elsewhere a plot is named in full
            near = [each for each in found if each.rsplit(".", 1)[0] in page]
            found = near or [each for each in found if not each.startswith("sthist.pl.")]
        return ".".join(filter(None, (found[0], member))) if len(found) == 1 else target

    def __call__(
        self, app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Node
    ) -> nodes.Node | None:
        """Handle the event of a reference that was not found; what this leaves goes on to other projects."""
        if node.get("refdomain") != "py":
            return None
        if node["reftarget"][0] in "'\"":  # a value of Literal
            return contnode
        target = node["reftarget"] = self.meant(node["reftarget"], node["refdoc"])
        if not target.startswith("sthist."):
            return None
        domain = env.get_domain("py")
        for role in dict.fromkeys((node["reftype"], "obj")):
            found = domain.resolve_xref(env, node["refdoc"], app.builder, role, target, node, contnode)
            if found is not None:
                return found
        return contnode if is_internal(target) else None


def is_internal(target: str) -> bool:
    """Whether a name is of something that exists and has no page, as it is not public."""
    parts = target.split(".")
    if parts[1] not in INTERNAL and not any(part.startswith("_") for part in parts):
        return False
    thing: Any = sthist
    for part in parts[1:]:
        thing = getattr(thing, part, None)
    return thing is not None


def source_link(domain: str, info: dict[str, str]) -> str | None:
    """Where the source of a name is, in the version that the pages are built of."""
    if domain != "py" or not info["module"]:
        return None
    thing: Any = importlib.import_module(info["module"])
    for part in info["fullname"].split("."):
        thing = getattr(thing, part, None)
    thing = thing.fget if isinstance(thing, property) else thing
    try:
        thing = inspect.unwrap(thing)
        file = Path(inspect.getsourcefile(thing) or "").resolve()
        lines, first = inspect.getsourcelines(thing)
    except (TypeError, OSError):
        return None
    if not file.is_relative_to(Path(sthist.__file__).parent.resolve()):
        return None
    version = os.environ.get("READTHEDOCS_GIT_IDENTIFIER", "main")
    place = file.relative_to(Path(sthist.__file__).parents[1].resolve()).as_posix()
    return f"{REPOSITORY}/blob/{version}/src/{place}#L{first}-L{first + len(lines) - 1}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; napoleon and intersphinx, which come after this, have priority 500."""
    complete_annotations()
    app.connect("autodoc-process-docstring", add_types, priority=400)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("missing-reference", Names(), priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
