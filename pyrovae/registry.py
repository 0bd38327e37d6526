"""A registry of families: a class is one line away from being found by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, type[T]]):
    """Classes by name, the class name in snake case."""

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: put a class in under ``name``."""

        def add(cls: type[T]) -> type[T]:
            self[name] = cls
            return cls

        return add
