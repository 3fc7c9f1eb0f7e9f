"""What tells one function, object or network of the user's from another: its content, and not its name."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import uuid
from typing import Any

import numpy as np

NOT_OF_THE_CLASS = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__firstlineno__",
    "__annotations__",
    "_abc_impl",
}
"""What stands among the attributes of a class, and has no part in what it computes."""

IN_C = (types.BuiltinFunctionType, np.ufunc, types.MethodDescriptorType, types.WrapperDescriptorType)
"""What is compiled, and known by its name alone."""


def content_of(thing: Any) -> str:
    """A hash of what a function or an object computes with: code, closure, arguments, attributes, weights.

    Two that have the same may take each other's unfinished work for their own. Where it cannot be told (an open file,
    what is compiled), it is another one at each call.
    """
    digest = hashlib.sha256()
    try:
        _Reader(digest).read(thing)
    except (_Unknown, RecursionError):
        return f"unknown-{uuid.uuid4().hex}"
    return digest.hexdigest()


class _Unknown(Exception):
    """A part whose content cannot be told."""


class _Reader:
    """Feeds a hash with a thing and all that it refers to, each once."""

    def __init__(self, digest: Any) -> None:
        self._digest, self._known = digest, dict[int, int]()
        self._alive: list[Any] = []  # so that no number of an object is given away again

    def _say(self, *words: Any) -> None:
        self._digest.update(repr(words).encode())

    def read(self, thing: Any) -> None:
        if thing is None or isinstance(thing, bool | int | float | complex | str | bytes) or thing is Ellipsis:
            self._say(type(thing).__name__, thing)
            return
        if id(thing) in self._known:
            self._say("again", self._known[id(thing)])
            return
        self._known[id(thing)] = len(self._known)
        self._alive.append(thing)
        self._say(type(thing).__module__, type(thing).__qualname__)
        if isinstance(thing, np.ndarray):
            self._array(thing)
        elif isinstance(thing, list | tuple):
            self._say(len(thing))
            for part in thing:
                self.read(part)
        elif isinstance(thing, dict):
            self._say(len(thing))
            for key, value in thing.items():
                self.read(key)
                self.read(value)
        elif isinstance(thing, set | frozenset):
            self._say(sorted(content_of(part) for part in thing))
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.MethodType):
            self.read(thing.__func__)
            self.read(thing.__self__)
        elif isinstance(thing, functools.partial):
            self.read([thing.func, thing.args, thing.keywords])
        elif isinstance(thing, types.ModuleType):
            self._say(thing.__name__, getattr(thing, "__version__", None))
        elif isinstance(thing, type):
            self._class(thing)
        else:
            self._object(thing)

    def _array(self, array: np.ndarray) -> None:
        self._say(str(array.dtype), array.shape)
        if array.dtype.hasobject:
            self.read(array.tolist())
        else:
            self._digest.update(np.ascontiguousarray(array).tobytes())

    def _code(self, code: types.CodeType) -> None:
        """The instructions and constants; not the lines on which they stand."""
        self._say(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
        self._say(code.co_kwonlyargcount, code.co_exceptiontable)
        for constant in code.co_consts:
            self.read(constant)

    def _function(self, function: types.FunctionType) -> None:
        self._say(function.__module__, function.__qualname__)
        if _is_installed(function.__module__):
            return
        self.read([function.__code__, function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                self.read(cell.cell_contents)
            except ValueError:  # it has none yet
                self._say("empty")
        for name in sorted(_global_names(function.__code__)):
            if name in function.__globals__:
                self._say(name)
                self.read(function.__globals__[name])

    def _class(self, kind: type) -> None:
        self._say(kind.__module__, kind.__qualname__)
        if _is_installed(kind.__module__):
            return
        self.read(list(kind.__bases__))
        for name, value in vars(kind).items():
            if name in NOT_OF_THE_CLASS:
                continue
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            elif isinstance(value, property):
                value = [value.fget, value.fset]
            elif isinstance(value, functools.cached_property):
                value = value.func
            elif isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue  # a slot, whose value is the object's
            self._say(name)
            self.read(value)

    def _object(self, thing: Any) -> None:
        """By its class and what copying it would take along."""
        if isinstance(thing, IN_C):
            owner = getattr(thing, "__self__", None)
            if owner is not None and not isinstance(owner, types.ModuleType | type):
                self.read(owner)
            self._say(getattr(thing, "__module__", None), getattr(thing, "__qualname__", thing.__name__))
            return
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(thing, torch.Tensor):
            values = thing.detach().cpu().contiguous()
            self._say(str(values.dtype), tuple(values.shape))
            self._digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
            return
        if torch is not None and isinstance(thing, torch.dtype | torch.device):
            self._say(str(thing))
            return
        self.read(type(thing))
        try:
            made = thing.__reduce_ex__(4)
        except Exception as error:
            raise _Unknown from error
        if isinstance(made, str):
            self._say(made)
            return
        self.read([made[0], *made[1:3], *([list(part) for part in made[3:5] if part is not None])])


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function may look up in its module, with those of functions inside of it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_global_names, inner))


def _is_installed(module: str | None) -> bool:
    """Whether code is of Python, of a package, or of sthist: it changes with a version alone."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return top == "sthist" or "site-packages" in file or "dist-packages" in file
