"""Numbers and strings that a model or an objective keeps in Python: in attributes, containers, closures, default arguments and globals.

A trace holds these as constants, so it is wrong as soon as a call changes one of them.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, MutableSequence
from contextlib import suppress
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from torch import nn

from pyrovae.parameters import is_plain

# Containers are read and written by these classes, because methods of the user's may fail or change something.
_MUTABLE = (OrderedDict, dict, list, deque)  # a dict's methods would break the order of an OrderedDict
_CONTAINERS = (*_MUTABLE, tuple, set, frozenset)
# Objects and code of these packages are not searched; namespaces hold what users put there.
_LIBRARIES = frozenset(
    {"torch", "pyro", "pyrovae", "numpy", "pandas", "scipy", "zuko", "sklearn", "matplotlib", "tqdm", "rich"}
    | (sys.stdlib_module_names - {"types", "argparse", "__main__"})
)
_OF_TORCH = frozenset(vars(nn.Module()))  # what every module has, such as its mode and its hooks
# Steps from a root to an object; entries of a container; objects in all.
_DEEPEST, _MOST, _MOST_OBJECTS = 6, 1000, 10_000


class PythonValues:
    """The plain values that some objects refer to, as they were when this was made.

    Args:
        roots: modules, functions and other objects.

    Example:
        >>> state = {"step": 0}
        >>> before = PythonValues([state])
        >>> state["step"] += 1
        >>> before.changed()
        "'step' of a dict"
        >>> before.restore()
        >>> state
        {'step': 0}
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._visited: dict[int, Any] = {}  # keeps the objects, so that no two have one id
        self._holders: list[tuple[Any, frozenset[str] | None, dict[Any, Any]]] = []
        # Breadth first, so that every object is searched on its shortest way from a root.
        self._waiting = deque((root, 0) for root in roots)
        while self._waiting and len(self._visited) < _MOST_OBJECTS:
            with suppress(Exception):  # of the user's objects: such an object is left out
                self._look(*self._waiting.popleft())

    def changed(self) -> str | None:
        """Return the first value that has changed, in words; None if none has."""
        for holder, names, before in self._holders:
            with suppress(Exception):
                now = _entries(holder, names)
                for key in {**before, **now}:
                    a, b = before.get(key, _Missing), now.get(key, _Missing)
                    if not _same(a, b):
                        return _described(holder, key)
        return None

    def restore(self) -> None:
        """Give every plain value that has changed its earlier value."""
        for holder, names, before in self._holders:
            with suppress(Exception):
                _restore(holder, before, _entries(holder, names))

    def _visit(self, value: Any, depth: int) -> None:
        if not is_plain(value) and id(value) not in self._visited and depth <= _DEEPEST:
            self._waiting.append((value, depth))

    def _look(self, value: Any, depth: int) -> None:
        if id(value) in self._visited:
            return
        self._visited[id(value)] = value
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._visit(part, depth + 1)
        elif isinstance(value, MethodType):
            self._visit(value.__self__, depth + 1)
            self._visit(value.__func__, depth + 1)
        elif isinstance(value, FunctionType):
            self._visit_function(value, depth)
        elif isinstance(value, CellType):
            self._hold(value, None, depth)
        elif isinstance(value, staticmethod | classmethod):
            self._visit(value.__func__, depth + 1)
        elif isinstance(value, property):
            for access in (value.fget, value.fset, value.fdel):
                self._visit(access, depth + 1)
        elif isinstance(value, functools.cached_property):
            self._visit(value.func, depth + 1)
        elif isinstance(value, type):
            if not _of_library(value):
                self._hold(value, None, depth)
                for member in list(vars(value).values()):  # also those under names such as __call__
                    if isinstance(member, FunctionType | staticmethod | classmethod | property):
                        self._visit(member, depth + 1)
        elif (base := _base(value)) is not None:
            if base.__len__(value) <= _MOST and base in _MUTABLE:
                self._hold(value, None, depth)
            elif base.__len__(value) <= _MOST:
                for part in base.__iter__(value):
                    self._visit(part, depth + 1)
        elif isinstance(value, MappingProxyType):
            for part in gc.get_referents(value):  # what it shows
                self._visit(part, depth + 1)
        elif isinstance(value, ModuleType):
            return  # of its values, those that a function names are held
        elif hasattr(value, "__dict__") and (
            isinstance(value, nn.Module | Mapping | MutableSequence) or not _of_library(type(value))
        ):
            self._hold(value, None, depth)
            for kind in type(value).__mro__:
                self._visit(kind, depth + 1)

    def _visit_function(self, function: FunctionType, depth: int) -> None:
        if _of_library(function):
            wrapped = getattr(function, "__wrapped__", None)
            if wrapped is not None:
                self._visit(wrapped, depth + 1)
            return
        for part in (*(function.__closure__ or ()), function.__defaults__, function.__kwdefaults__):
            self._visit(part, depth + 1)
        self._hold(function, None, depth)
        names = frozenset(_names(function.__code__))
        self._hold(function.__globals__, names, depth)
        for name in names & function.__globals__.keys():
            if isinstance(module := function.__globals__[name], ModuleType) and not _of_library(module):
                self._hold(vars(module), names, depth)
        self._visit(getattr(function, "__wrapped__", None), depth + 1)

    def _hold(self, holder: Any, names: frozenset[str] | None, depth: int) -> None:
        entries = _entries(holder, names)
        self._holders.append((holder, names, entries))
        for value in entries.values():
            self._visit(value, depth + 1)


class _Missing:
    """Stands for a value that is not there."""


def _names(code: Any) -> Iterable[str]:
    """Yield the names that a function's code uses, and those of functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)


def _of_library(thing: Any) -> bool:
    """Return whether a class, function or module belongs to a package that keeps no values of the user."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return not isinstance(name, str) or name.partition(".")[0] in _LIBRARIES


def _entries(holder: Any, names: frozenset[str] | None) -> dict[Any, Any]:
    """Return what an object holds, by name or number; of a dict of globals only some names."""
    if isinstance(holder, CellType):
        try:
            return {"": holder.cell_contents}
        except ValueError:  # not yet assigned
            return {}
    if names is not None:
        return {name: holder[name] for name in names if name in holder}
    if isinstance(holder, type):
        return {k: v for k, v in vars(holder).items() if not (k.startswith("__") and k.endswith("__"))}
    base = _base(holder)
    if base is not None:
        return dict(dict.items(holder) if isinstance(holder, dict) else enumerate(base.__iter__(holder)))
    skipped = _OF_TORCH if isinstance(holder, nn.Module) else frozenset[str]()
    return {name: value for name, value in list(vars(holder).items()) if name not in skipped}


def _base(value: Any) -> Any:
    """Return the class of Python whose methods reach a container's entries without code of the user; None for others."""
    return next((base for base in _CONTAINERS if issubclass(type(value), base)), None)


def _restore(holder: Any, before: dict[Any, Any], now: dict[Any, Any]) -> None:
    """Give a holder's plain values their earlier ones."""
    base = _base(holder)
    if base in (list, deque) and len(now) != len(before):
        base.clear(holder)
        base.extend(holder, before.values())
        return
    for key in now:
        if key not in before and is_plain(now[key]):
            with suppress(Exception):  # such as of a class that takes no attributes
                _remove(holder, key)
    for key, value in before.items():
        if is_plain(value) and not _same(value, now.get(key, _Missing)):
            with suppress(Exception):
                _set(holder, key, value)


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, CellType):
        holder.cell_contents = value
    elif isinstance(holder, type):
        setattr(holder, key, value)
    elif (base := _base(holder)) is not None:
        base.__setitem__(holder, key, value)
    else:
        vars(holder)[key] = value


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, type):
        delattr(holder, key)
    elif (base := _base(holder)) is not None:
        base.__delitem__(holder, key)
    elif not isinstance(holder, CellType):
        del vars(holder)[key]


def _same(a: Any, b: Any) -> bool:
    """Return whether plain values are equal. Other values count as equal, because caches are replaced at every call."""
    if not (is_plain(a) or is_plain(b)):
        return True
    return type(a) is type(b) and bool(a == b or (a != a and b != b))  # NaN of any type, and NaT


def _described(holder: Any, key: Any) -> str:
    if isinstance(holder, CellType):
        return "a variable of a closure"
    if isinstance(holder, FunctionType):
        return f"{key!r} of function {holder.__name__}"
    owner = holder.__name__ if isinstance(holder, type) else type(holder).__name__
    if type(holder) is dict and "__name__" in holder and "__builtins__" in holder:
        return f"{key!r} of module {holder['__name__']}"
    return f"{key!r} of a{'n' if owner[:1] in 'AEIOUaeio' else ''} {owner}"


def values_of_call(pair: Any, objective: Any = None) -> PythonValues:
    """Return the plain values that a pair's model and guide, its modules and an objective refer to."""
    return PythonValues([*pair.every_module(), pair.model, pair.guide, objective])
