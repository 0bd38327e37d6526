"""Registries of families: one decorator line registers a class by name and records its constructor's arguments."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T", bound=nn.Module)


class Registry(dict[str, type[T]]):
    """Module classes by name, the class name in snake case."""

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers a class as ``name`` and records its constructor's arguments."""

        def add(cls: type[T]) -> type[T]:
            self[name] = cls
            _record_arguments(cls)
            return cls

        return add


def _record_arguments(cls: type[nn.Module]) -> None:
    """Make instances of ``cls``, but not of its subclasses, store their constructor's arguments in ``.arguments``."""
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is cls:  # a subclass that calls this has other arguments
            bound = signature.bind(self, *args, **kwargs)
            names = list(bound.arguments)[1:]  # without self
            vars(self)["arguments"] = {name: bound.arguments[name] for name in names}

    cls.__init__ = init  # type: ignore[method-assign]


def rebuild(module: nn.Module, memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """Return a new module of the same class and arguments as ``module``, with fresh weights.

    Modules among the arguments are rebuilt in turn. A module of no registered class is copied with its
    weights. ``rebuild`` does not know about modules that were replaced after construction.

    Args:
        module: an instance of a registered class, or any torch module.
        memo: rebuilt modules by the id of their originals, as in ``copy.deepcopy``. Pass one dict to
            several calls if modules are shared, as a ``VampPrior`` shares the encoder.

    Example:
        >>> from pyrovae import encoders
        >>> from pyrovae.networks import MLP
        >>> q = encoders.DiagonalNormal(MLP(5, (8,), 2 * 3))
        >>> again = rebuild(q)
        >>> again.load_state_dict(q.state_dict())
        <All keys matched successfully>
    """
    memo = {} if memo is None else memo
    if id(module) not in memo:
        if "arguments" in vars(module):
            arguments = {
                name: rebuild(value, memo) if isinstance(value, nn.Module) else value
                for name, value in vars(module)["arguments"].items()
            }
            memo[id(module)] = type(module)(**arguments)
        else:
            memo[id(module)] = copy.deepcopy(module)
    return memo[id(module)]
