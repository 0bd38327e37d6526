"""What a model or an objective keeps in Python: in attributes, containers, closures, default arguments, hooks and globals.

A trace holds numbers and strings as constants, so it is wrong as soon as a call changes one of them.
"""

from __future__ import annotations

import array
import functools
import gc
import pickle
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import getattr_static
from pathlib import PurePath
from types import CellType, FunctionType, MappingProxyType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae.parameters import is_plain
from pyrovae.torch_private import Moved, private

# Containers are read and written by these classes, because methods of the user's may fail or change something.
_MUTABLE = (OrderedDict, dict, list, deque, set)  # a dict's methods would break the order of an OrderedDict
_CONTAINERS = (*_MUTABLE, tuple, frozenset)
_ARRAYS = (np.ndarray, bytearray, array.array)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CONSTANTS = (Decimal, Fraction, date, time, timedelta, Enum, PurePath, range)
# Objects and code of these packages are not searched; namespaces hold what users put there.
_LIBRARIES = frozenset(
    {"torch", "pyro", "pyrovae", "numpy", "pandas", "scipy", "zuko", "sklearn", "matplotlib", "tqdm", "rich"}
    | (sys.stdlib_module_names - {"types", "argparse", "__main__"})
)
_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}  # what every module has
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CACHED = type(functools.cache(int))
_WRAPPERS = (
    functools.partial,
    functools.cached_property,
    MethodType,
    staticmethod,
    classmethod,
    property,
    _CACHED,
    MappingProxyType,
)
# Steps from a root to an object; entries of a container; objects in all.
_DEEPEST, _MOST, _MOST_OBJECTS = 10, 1000, 10_000


class PythonValues:
    """The values that some objects refer to, as they were when this was made.

    Numbers, strings, containers of them and states of random generators are compared. Everything can be restored: which
    objects stood where, these states, parameters and buffers of modules, and other tensors of at most 1000 numbers.

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
        self._of_modules: dict[int, str] = {}  # what the dicts of modules hold, by their ids
        # Each with its memory, and its numbers if they are kept.
        self._tensors: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        # Breadth first, so that every object is searched on its shortest way from a root.
        self._waiting = deque((root, 0) for root in roots)
        while self._waiting and (len(self._visited) < _MOST_OBJECTS or not self._waiting[0][1]):
            with suppress(Exception):  # of the user's objects: such an object is left out
                self._look(*self._waiting.popleft())

    def changed(self) -> str | None:
        """Return the first value that has changed, in words; None if none has."""
        for holder, names, before in self._holders:
            with suppress(Exception):
                now = _entries(holder, names)
                kind = self._of_modules.get(id(holder))
                for key in _different(before, now):
                    return _described(holder, key)
                for key in before.keys() ^ now.keys() if kind else ():
                    return f"{kind} {key}"
        return None

    def replaced(self, tensors: Iterable[Tensor] = ()) -> str | None:
        """Return the first parameter or buffer, or one of some tensors, that is another object or has moved, in words."""
        read = {id(tensor) for tensor in tensors}
        for holder, names, before in self._holders:
            kind = self._of_modules.get(id(holder))
            with suppress(Exception):
                now = _entries(holder, names)
                for key in {**before, **now}:
                    value = before.get(key, getattr_static(type(holder), str(key), None))
                    if (
                        isinstance(value, Tensor)
                        and (kind or id(value) in read)
                        and (self._has_moved(value) or now.get(key) is not value)
                    ):
                        return f"{kind} {key}" if kind else _described(holder, key)
        return None

    def restore(self) -> None:
        """Put back what stood where, and give tensors their memory and their numbers."""
        for holder, names, before in self._holders:
            with suppress(Exception):
                _restore(holder, before, _entries(holder, names))
        for tensor, memory, numbers in self._tensors.values():
            with suppress(Exception), torch.no_grad():
                if self._has_moved(tensor):
                    tensor.data = memory
                if numbers is not None and not torch.equal(tensor, numbers):
                    tensor.copy_(numbers)

    def _visit(self, value: Any, depth: int) -> None:
        if not is_plain(value) and id(value) not in self._visited and depth <= _DEEPEST:
            self._waiting.append((value, depth))

    def _look(self, value: Any, depth: int) -> None:
        if id(value) in self._visited:
            return
        self._visited[id(value)] = value
        if isinstance(value, Tensor):
            for hook in (value._backward_hooks or {}).values():
                self._visit(hook, depth + 1)
            self._keep(value, numbers=value.numel() <= _MOST)
            self._hold_plain(value, depth)
        elif isinstance(value, FunctionType):
            self._visit_function(value, depth)
        elif isinstance(value, CellType):
            self._hold(value, None, depth)
        elif isinstance(value, _WRAPPERS):
            for part in _wrapped(value):
                self._visit(part, depth + 1)
        elif isinstance(value, type):
            if not _of_library(value):
                self._hold(value, None, depth)
                for member in list(vars(value).values()):  # also those under names such as __call__
                    if isinstance(member, FunctionType | staticmethod | classmethod | property):
                        self._visit(member, depth + 1)
        elif (base := _base(value)) is not None:
            if hasattr(value, "__dict__"):  # of a subclass
                self._hold(vars(value), None, depth)
            if base.__len__(value) <= _MOST and base in _MUTABLE:
                self._hold(value, None, depth)
            elif base.__len__(value) <= _MOST:
                for part in base.__iter__(value):
                    self._visit(part, depth + 1)
        elif isinstance(value, _ARRAYS):
            if np.size(value) <= _MOST:
                self._hold(value, None, depth)
        elif isinstance(value, _GENERATORS):
            self._hold(value, None, depth)
            if hasattr(value, "__dict__"):  # of a subclass
                self._hold(vars(value), None, depth)
        elif isinstance(value, ModuleType):  # of its other values, those that a function names are held
            if not _of_library(value):
                self._hold_plain(value, depth)
        elif (hasattr(value, "__dict__") or _slots(type(value))) and (
            isinstance(value, nn.Module | Mapping | MutableSequence) or not _of_library(type(value))
        ):
            self._hold(value, None, depth)
            if isinstance(value, nn.Module):
                self._look_into(value, depth)
            for kind in type(value).__mro__:
                self._visit(kind, depth + 1)
        elif type(value).__module__.partition(".")[0] in ("torch", "pyro"):
            self._hold_plain(value, depth)

    def _hold_plain(self, value: Any, depth: int) -> None:
        """Hold the attributes of an object that are plain values now."""
        held = getattr(value, "__dict__", {})
        if plain := frozenset(name for name, each in list(held.items()) if is_plain(each)):
            self._hold(held, plain, depth)

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
        for name in names:
            self._hold_module(function.__globals__.get(name, sys.modules.get(name)), names, depth, levels=3)
        self._visit(getattr(function, "__wrapped__", None), depth + 1)

    def _hold_module(self, module: Any, names: frozenset[str], depth: int, levels: int) -> None:
        """Hold the values of a module that a function names, and of modules in it, as in ``package.module.VALUE``."""
        if levels and isinstance(module, ModuleType) and not _of_library(module):
            self._hold(vars(module), names, depth)
            for name in names & vars(module).keys():
                self._hold_module(vars(module)[name], names, depth, levels - 1)

    def _look_into(self, module: nn.Module, depth: int) -> None:
        """Hold a module's parameters and buffers, and visit its children and hooks."""
        for kind in ("parameter", "buffer"):
            held = vars(module)[f"_{kind}s"]
            self._of_modules[id(held)] = kind
            self._hold(held, None, depth)
            for tensor in held.values():
                if tensor is not None:
                    with suppress(Exception):  # such as a lazy one
                        self._keep(tensor)
        self._of_modules[id(vars(module)["_modules"])] = "module"
        self._hold(vars(module)["_modules"], None, depth)
        for name in _HOOKS:
            for part in vars(module)[name].values():
                self._visit(part, depth + 1)

    def _has_moved(self, tensor: Tensor) -> bool:
        """Return whether a tensor has got other memory, as by ``tensor.data = …``."""
        both = tensor, self._tensors.get(id(tensor), (tensor, tensor))[1]
        now, before = ((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in both)
        return now != before

    def _keep(self, tensor: Tensor, numbers: bool = True) -> None:
        known = self._tensors.get(id(tensor))
        if known is None or (numbers and known[2] is None):
            memory = tensor.detach()
            self._tensors[id(tensor)] = tensor, memory, memory.clone() if numbers else None

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


def _wrapped(wrapper: Any) -> Iterable[Any]:
    """Return the objects that a wrapper of functions or values holds."""
    if isinstance(wrapper, functools.partial):
        return wrapper.func, wrapper.args, wrapper.keywords
    if isinstance(wrapper, MethodType):
        return wrapper.__self__, wrapper.__func__
    if isinstance(wrapper, staticmethod | classmethod):
        return (wrapper.__func__,)
    if isinstance(wrapper, property):
        return wrapper.fget, wrapper.fset, wrapper.fdel
    if isinstance(wrapper, functools.cached_property):
        return (wrapper.func,)
    held = gc.get_referents(
        wrapper
    )  # what a proxy shows; a cache's function, and what it returned, in a dict
    if isinstance(wrapper, _CACHED):
        return [each for part in held for each in (part.values() if type(part) is dict else [part])]
    return held


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
    if isinstance(holder, _ARRAYS):
        if getattr(holder, "dtype", np.dtype(int)).hasobject:
            raise TypeError("an array of objects")
        return {"": bytes(holder) if isinstance(holder, bytearray) else holder.tobytes()}
    if isinstance(holder, _GENERATORS):
        return {"": _state(holder)}
    base = _base(holder)
    if base in (set, frozenset):  # hashes of other objects may run code of the user
        return {entry if is_plain(entry) else (_Missing, id(entry)): entry for entry in base.__iter__(holder)}
    if base is not None:
        return dict(dict.items(holder) if isinstance(holder, dict) else enumerate(base.__iter__(holder)))
    skipped = _OF_TORCH if isinstance(holder, nn.Module) else frozenset[str]()
    found = {}
    for name, slot in _slots(type(holder)).items():
        with suppress(AttributeError):  # not yet assigned
            found[name] = slot.__get__(holder)
    held = list(vars(holder).items()) if hasattr(holder, "__dict__") else []
    return found | {name: value for name, value in held if name not in skipped}


def _state(generator: Any) -> bytes:
    """Return the state of a generator of random numbers as bytes, which are quick to compare."""
    if isinstance(generator, random.Random):
        return pickle.dumps(generator.getstate())
    if isinstance(generator, np.random.Generator):
        return pickle.dumps(generator.bit_generator.state)
    if isinstance(generator, torch.Generator):  # two pickles of one tensor may differ
        return generator.get_state().numpy().tobytes()
    return pickle.dumps(generator.get_state())


def _set_state(generator: Any, state: bytes) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(pickle.loads(state))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = pickle.loads(state)
    elif isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    else:
        generator.set_state(pickle.loads(state))


def _slots(kind: type) -> dict[str, Any]:
    """Return the ``__slots__`` of a user's class as descriptors, by name."""
    return {
        name: member
        for base in kind.__mro__
        if not _of_library(base)
        for name, member in list(vars(base).items())
        if isinstance(member, MemberDescriptorType)
    }


def _base(value: Any) -> Any:
    """Return the class of Python whose methods reach a container's entries without code of the user; None for others."""
    return next((base for base in _CONTAINERS if issubclass(type(value), base)), None)


def _restore(holder: Any, before: dict[Any, Any], now: dict[Any, Any]) -> None:
    """Give a holder what it held earlier."""
    base = _base(holder)
    if base in (list, deque, set):
        if before.keys() != now.keys() or any(now[key] is not value for key, value in before.items()):
            base.clear(holder)
            (base.update if base is set else base.extend)(holder, before.values())
        return
    for key in now.keys() - before.keys():
        with suppress(Exception):  # such as of a class that takes no attributes
            _remove(holder, key)
    for key, value in before.items():
        if now.get(key, _Missing) is not value:
            with suppress(Exception):
                _set(holder, key, value)


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, CellType):
        holder.cell_contents = value
    elif isinstance(holder, type):
        setattr(holder, key, value)
    elif isinstance(holder, _GENERATORS):
        _set_state(holder, value)
    elif isinstance(holder, np.ndarray):
        holder.flat[:] = np.frombuffer(value, holder.dtype)
    elif isinstance(holder, bytearray):
        holder[:] = value
    elif isinstance(holder, array.array):
        holder[:] = array.array(holder.typecode, value)
    elif (slot := _slots(type(holder)).get(key)) is not None:
        slot.__set__(holder, value)
    elif (base := _base(holder)) is not None:
        base.__setitem__(holder, key, value)
    else:
        vars(holder)[key] = value


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, type):
        delattr(holder, key)
    elif (slot := _slots(type(holder)).get(key)) is not None:
        slot.__delete__(holder)
    elif (base := _base(holder)) is not None:
        base.__delitem__(holder, key)
    elif not isinstance(holder, CellType):
        del vars(holder)[key]


def _different(before: dict[Any, Any], now: dict[Any, Any]) -> Iterator[Any]:
    """Yield the keys under which entries are not the same."""
    for key in {**before, **now}:
        if not _same(before.get(key, _Missing), now.get(key, _Missing)):
            yield key


def _same(a: Any, b: Any) -> bool:
    """Return whether plain values, or containers of them, are equal.

    Other values count as equal, because caches are replaced at every call.
    """
    if a is b:
        return True
    if _is_constant(a) or _is_constant(b):
        return type(a) is type(b) and bool(a == b or (a != a and b != b))  # NaN of any type, and NaT
    before, now = _parts(a), _parts(b)
    if before is None or now is None:
        return True
    return type(a) is type(b) and not any(True for _ in _different(before, now))


def _is_constant(value: Any) -> bool:
    return is_plain(value) or issubclass(type(value), _CONSTANTS)


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return the entries of a container, an array or a dataclass of at most 1000; None for other objects.

    A ``torch.Size`` is another object: it follows from the rows, of which a trace has a fixed number.
    """
    base = None if isinstance(value, torch.Size) else _base(value)
    if base is not None:
        return _entries(value, None) if base.__len__(value) <= _MOST else None
    if isinstance(value, _ARRAYS):
        return {**_entries(value, None), "shape": np.shape(value)} if np.size(value) <= _MOST else None
    return _entries(value, None) if is_dataclass(type(value)) and not _of_library(type(value)) else None


def _described(holder: Any, key: Any) -> str:
    if isinstance(holder, CellType):
        return "a variable of a closure"
    if isinstance(holder, FunctionType):
        return f"{key!r} of function {holder.__name__}"
    owner = holder.__name__ if isinstance(holder, type) else type(holder).__name__
    if type(holder) is dict and "__name__" in holder and "__builtins__" in holder:
        return f"{key!r} of module {holder['__name__']}"
    what = repr(key)
    if isinstance(holder, _ARRAYS):
        what = "an entry"
    elif isinstance(holder, _GENERATORS):
        what = "the state"
    return f"{what} of a{'n' if owner[:1] in 'AEIOUaeio' else ''} {owner}"


def values_of_call(pair: Any, objective: Any = None) -> PythonValues:
    """Return the values that a pair's model and guide, its modules, an objective and torch's hooks of all modules refer to."""
    hooks = []
    for name in ("forward_pre", "forward", "backward_pre", "backward"):
        with suppress(Moved):
            hooks.append(private(f"{name}_hooks"))
    return PythonValues([*pair.every_module(), pair.model, pair.guide, objective, *hooks])
