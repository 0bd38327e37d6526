"""The parameters of a pair: those of its modules, and those that ``pyro.param`` declares in plain functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import ParamStoreDict, StateDict
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrovae.arrays import FLOATS
from pyrovae.precision import products
from pyrovae.refusals import bad_type, bad_value, first_line

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
# Parts of torch's error messages for a device that does not exist.
_NO_DEVICE = (
    "not compiled",
    "not linked",
    "NVIDIA driver",
    "No CUDA GPUs",
    "invalid device ordinal",
    "No HIP GPUs",
    "device string",  # for an unknown name
)


class Parameters(nn.Module):
    """Holds, adopts and registers the parameters of a model and a guide, and sets the modes of their modules."""

    model: Callable[..., Any]
    guide: Callable[..., Any]

    def __init__(
        self, owners: Sequence[nn.Module] | None = None, params: ParamStoreDict | dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if owners is not None:
            self.owners = nn.ModuleList(owners)
            _refuse_homonyms(owners)
        self._adopted = params is not None
        self._filled = False  # True if a file filled the store before the first run
        self._store = _store_state(params)
        self._scopes: list[set[str]] = []  # one for every block of ``own_parameters`` that is running
        self.declared = nn.Module()  # holds what pyro.param and pyro.module declared in plain functions
        self.register_declared()

    @property
    def stored(self) -> dict[str, Any]:
        """The values in the pair's parameter store, by name."""
        return self._store["params"]

    @property
    def constraints(self) -> dict[str, Any]:
        """The constraints of the values in the pair's parameter store, by name."""
        return self._store["constraints"]

    def fill(self, declared: Mapping[str, tuple[Tensor, Any]]) -> None:
        """Store values and constraints from a file, which the first run of the pair then uses."""
        for name, (value, constraint) in declared.items():
            self.stored[name], self.constraints[name] = value, constraint
        self._filled = self._filled or bool(declared)
        self.register_declared()

    @contextmanager
    def own_parameters(self) -> Iterator[None]:
        """Run a block in which Pyro's parameter statements use this pair's store instead of the global one."""
        known = set(self.stored)
        self._scopes.append(known)
        try:
            with pyro.get_param_store().scope(self._store):
                yield
        finally:
            self._scopes.pop()
        if self.stored.keys() != known:
            self._refuse_taken_names(known)
            self._refuse_unsaved_names(known)
            self.register_declared()

    def _refuse_taken_names(self, known: set[str]) -> None:
        """Raise ``ValueError`` if the pair newly declares a name that the global store already holds.

        The global value may come from training this pair, so the pair must not restart it silently.
        """
        if self._adopted:
            return
        owned = {id(p) for p in self.owners_parameters()}
        new = {name: p for name, p in self.stored.items() if name not in known and id(p) not in owned}
        taken = sorted(name for name in new if name in pyro.get_param_store())
        if taken:
            self._forget(self.stored.keys() - known)
            raise bad_value(
                "params",
                "names that Pyro's global parameter store does not hold yet",
                f"{len(taken)} that it does, first {taken[0]!r}",
                "Pass params=pyro.get_param_store() to use what was trained there, or call "
                "pyro.clear_param_store() first to start anew.",
            )

    def _refuse_unsaved_names(self, known: set[str]) -> None:
        """Raise ``ValueError`` if a pair loaded from a file declares a name that the file does not hold.

        Such a parameter would start untrained, without notice.
        """
        held = {id(p) for module in self.every_module() for p in module.parameters()}
        new = [name for name, p in self.stored.items() if name not in known and id(p) not in held]
        if self._filled and new:
            self._forget(new)
            raise bad_value(
                "params",
                "names that were in the file this pair was loaded from",
                f"{len(new)} that were not, first {new[0]!r}",
                "Load a file that was saved by the same code.",
            )

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self.stored[name], self.constraints[name]

    def register_declared(self) -> None:
        """Make declared parameters visible to torch: .parameters(), .double(), .to(device)."""
        known = {id(p) for p in self.parameters()}
        for name, value in self.stored.items():
            if id(value) in known:
                continue
            attribute = name.replace(".", "/")  # torch forbids dots in a parameter's name
            if hasattr(self.declared, attribute):  # and names of a module's own attributes, such as "half"
                attribute += "/"
            if not isinstance(value, nn.Parameter):
                value = self.stored[name] = nn.Parameter(value.detach().clone())
            self.declared.register_parameter(attribute, value)

    @contextmanager
    def nothing_declared_on_error(self) -> Iterator[None]:
        """Run a block; if it raises, remove the parameters that pyro.param and pyro.module declared in it."""
        known = set(self.stored)
        try:
            yield
        except BaseException:
            self._forget(self.stored.keys() - known)
            kept = {id(p) for p in self.stored.values()}
            for attribute, parameter in list(self.declared._parameters.items()):
                if id(parameter) not in kept:
                    del self.declared._parameters[attribute]
            raise

    def check_numbers(self) -> None:
        """Raise an error for parameters and buffers that cannot be used.

        Raises:
            TypeError: parameters in another dtype than float32 and float64; a tensor on the meta device.
            ValueError: a tensor made in inference mode, or of a lazy module that has not run.
        """
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if is_lazy(tensor):
                raise bad_value(
                    "pair",
                    "parameters whose shapes are known",
                    f"{name} of a lazy module that has not run yet",
                    "Run the module once on a few rows, or give it the number of its inputs: nn.Linear(6, 2).",
                )
        if self.dtype is not None and self.dtype not in FLOATS:
            raise bad_type(
                "pair",
                "parameters in float32 or float64",
                f"parameters in {self.dtype}",
                'Cast them: model.float(). For faster training pass fit(..., precision="medium").',
            )
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if tensor.device.type == "meta":
                raise bad_type(
                    "pair",
                    "parameters with numbers in them",
                    f"{name} on the meta device",
                    "Build the model on a real device.",
                )
            if tensor.is_inference():
                raise bad_value(
                    "pair",
                    "parameters that were made outside torch.inference_mode()",
                    f"{name}, made inside",
                    "Build, copy or load the model outside.",
                )

    def every_module(self) -> Iterator[nn.Module]:
        """Yield the pair's modules and those that its plain functions refer to, for example to pass to pyro.module."""
        yield from self.modules()
        for function in (self.model, self.guide):
            for module in referred(function).values():
                yield from module.modules()

    def owners_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the modules that model and guide are or are methods of."""
        return self.owners.parameters()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run a block in ``eval()`` mode, without gradients, with float32 products; then restore each module's mode."""
        with self._mode(training=False), torch.no_grad(), products("highest"):
            yield

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Run a block with gradients, in ``train()`` mode if the pair is in ``eval()`` mode; then restore the modes.

        If the pair is in training mode, each module keeps its own mode, because some may be frozen on purpose.
        """
        with torch.enable_grad():
            if self.training:
                yield
            else:
                with self._mode(training=True):
                    yield

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        modes = [(module, module.training) for module in self.every_module()]
        _set_modes((module, training) for module, _ in modes)
        try:
            yield
        finally:
            _set_modes(modes)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast as ``torch.nn.Module.to`` does; raise ``ValueError`` if the device is not available."""
        with _device_is_here():
            return super().to(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        with _device_is_here():
            return super()._apply(fn, recurse)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the first float parameter or buffer; None if there are none yet."""
        return next((p.dtype for p in self._floating()), None)

    @property
    def coarsest(self) -> torch.dtype | None:
        """The dtype of the fewest digits among float parameters and buffers, to whose rounding numbers agree; or None."""
        dtypes = {
            tensor.dtype
            for module in self.every_module()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and tensor.is_floating_point()
        }
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    @property
    def device(self) -> torch.device | None:
        """The device of the first float parameter or buffer; None if there are none yet."""
        return next((p.device for p in self._floating()), None)

    def _floating(self) -> Iterator[Tensor]:
        yield from (p for p in self.parameters() if p.is_floating_point())
        yield from (b for b in self.buffers() if b.is_floating_point())


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        if module.training != mode:  # a module's attributes are slow to set
            module.training = mode


@contextmanager
def _device_is_here() -> Iterator[None]:
    """Run a block that moves tensors; raise ``ValueError`` if this machine or its torch does not have the device."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        if not any(words in str(error) for words in _NO_DEVICE):
            raise
        came = first_line(error).rstrip(".")
        raise bad_value(
            "device",
            "one that this machine and its torch have",
            came.rpartition("device string: ")[2],
            "Stay on the CPU, or install a torch that is built for the device.",
        ) from error


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a string, bytes or None: of Python, numpy, or a class that inherits from theirs."""
    return issubclass(type(value), _PLAIN)  # isinstance would ask the value for its class


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes that are numbers or strings, by name."""
    # None is left out: it often stands for something that is computed and kept later.
    return {k: v for k, v in vars(module).items() if is_plain(v) and v is not None}


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside ``functools.partial`` and decorators that use ``functools.wraps``."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    return function


def referred(function: Callable[..., Any]) -> dict[str, nn.Module]:
    """Return the torch modules that a plain function's own code names, by name: closure variables and globals."""
    function = unwrapped(function)
    if not inspect.isfunction(function):
        return {}
    variables = inspect.getclosurevars(function)
    found = {**variables.globals, **variables.nonlocals}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


def _store_state(params: ParamStoreDict | dict[str, Any] | None) -> StateDict:
    if params is None:
        return {"params": {}, "constraints": {}}
    if isinstance(params, ParamStoreDict):
        return params.get_state()
    if isinstance(params, dict) and params.keys() == {"params", "constraints"}:
        return {"params": dict(params["params"]), "constraints": dict(params["constraints"])}
    raise bad_type(
        "params",
        "a Pyro parameter store or its get_state()",
        f"a {type(params).__name__}",
        "Pass pyro.get_param_store().",
    )


def owners_of(*functions: Callable[..., Any]) -> list[nn.Module]:
    """Return the torch modules that functions are, or are bound methods of, each once."""
    plain = (unwrapped(function) for function in functions)
    found = (getattr(function, "__self__", function) for function in plain)
    return list({id(owner): owner for owner in found if isinstance(owner, nn.Module)}.values())


def _refuse_homonyms(owners: Sequence[nn.Module]) -> None:
    """Raise ``ValueError`` if two PyroParams have one name.

    Pyro identifies a PyroParam by its name only, so the first would replace the second.
    """
    seen: dict[str, nn.Parameter] = {}
    for owner in owners:
        for name, parameter in owner.named_parameters() if isinstance(owner, PyroModule) else ():
            if not name.endswith("_unconstrained"):
                continue
            name = f"{owner._pyro_name}.{name}"
            if seen.setdefault(name, parameter) is not parameter:
                raise bad_value(
                    "guide",
                    "PyroParams of other names than the model's",
                    f"two named {name.strip('.').removesuffix('_unconstrained')!r}, which Pyro would make one",
                    'Rename one, or name the module: super().__init__("guide").',
                )
