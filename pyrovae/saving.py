"""save() and load(): a fitted model as one file, restored bit for bit.

A VAE is rebuilt from the names of its parts. Names refer only to classes in the registries and to a short list of
torch's layers, so loading runs no code from the file. For parts made of the user's own code, such as a Pyro pair or a
custom likelihood, the file holds the numbers only. They are loaded into an instance of the same code.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae import arguments, baselines, encoders, likelihoods, networks, priors, storage
from pyrovae.baselines.base import Fitted
from pyrovae.likelihoods.mixed import TABLES
from pyrovae.model import VAE, FitRecord, LatentVariableModel
from pyrovae.parameters import is_plain, referred
from pyrovae.refusals import Refused, bad_type, bad_value, shown
from pyrovae.tables import Table
from pyrovae.turns import takes_turns

# The classes that names refer to: those in the registries, and torch's layers whose state is all in tensors.
_REGISTRIES: dict[str, Mapping[str, type]] = {
    "priors": priors.REGISTRY,
    "likelihoods": likelihoods.REGISTRY,
    "tables": TABLES,
    "encoders": encoders.REGISTRY,
    "networks": networks.REGISTRY,
    "torch": {
        name: getattr(nn, name)
        for name in (
            *(
                "Linear",
                "Conv1d",
                "Conv2d",
                "Conv3d",
                "ConvTranspose1d",
                "ConvTranspose2d",
                "ConvTranspose3d",
            ),
            *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm", "Dropout", "Dropout2d"),
            *("Flatten", "Unflatten", "Identity", "MaxPool2d", "AvgPool2d", "Upsample", "PixelShuffle"),
            *("ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "SiLU", "Mish", "Softplus", "Sigmoid", "Tanh"),
            *("Softmax", "LogSigmoid", "Sequential"),
        )
    },
}


_OBJECTIVE = "the loss"
# Attributes of a pair that belong to one object, or that ``settings_of`` has.
_OWN = {"training", "name", "plate", "fitted", "table", "_adopted", "_filled"}


@takes_turns
def save(model: LatentVariableModel | Fitted, path: str | os.PathLike[str]) -> None:
    """Save a fitted model to one file, atomically; ``load`` restores it bit for bit.

    The file holds every parameter and buffer with its dtype, which of them are frozen, and the parts' train or eval
    mode. It holds the architecture by the names of the registries, and the versions of pyrovae, torch, pyro and
    python. It holds what ``fit`` stored on the pair: the fingerprint of the training rows and the history. It holds
    no pickle or code.

    Args:
        model: a ``VAE``, any Pyro pair in a ``LatentVariableModel``, or a baseline.
        path: the file to write. An existing file is replaced as a whole, or stays unchanged if saving fails.

    Raises:
        TypeError: model is not a model, or a baseline holds something other than numbers, strings, tensors or arrays.
        OSError: the folder is missing, full or read-only. An earlier file is unchanged.

    Example:
        >>> import tempfile, pyrovae as pv
        >>> vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(vae, f"{folder}/vae")
        ...     again = load(f"{folder}/vae")
        >>> torch.equal(again.sample(5, seed=0), vae.sample(5, seed=0))
        True
    """
    arguments.path("path", path)
    arrays: dict[str, Tensor] = {}
    if isinstance(model, LatentVariableModel):
        meta = _pair_record(model, arrays)
    elif isinstance(model, Fitted):
        meta = _baseline_record(model, arrays)
    else:
        raise bad_type(
            "model",
            "a VAE, a LatentVariableModel or a baseline",
            f"a {type(model).__name__}",
            "Wrap a Pyro model and guide: LatentVariableModel(model, guide).",
        )
    storage.write(path, arrays, meta | {"versions": _versions()})


@takes_turns
def load(path: str | os.PathLike[str], into: Any = None) -> Any:
    """Return the model saved in a file, on the CPU; or ``into``, with the saved values.

    Args:
        path: the file.
        into: an instance of the saved class, built by the same code. Needed if a part of the model is in no
            registry, such as the user's own Pyro pair. Before it changes anything, ``load`` compares what the file
            holds: arguments and modules of the registries, and names, shapes, dtypes and constraints of tensors.
            A ``PyroMCMC`` must also have the saved latents, by name, order and shape. It must give saved draws the
            log joint that it gave them when it was fitted. A pair's file holds no rows, so ``load`` cannot detect a
            change in the pair's code. Tensors are written in place. A pair of plain functions that has not run yet
            gets the saved parameters, which its first run then uses.

    Returns:
        A ``VAE`` or a baseline; or ``into``.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read.
        ValueError: the file is not pyrovae's, damaged, or of a newer version; names, shapes or dtypes differ from
            those of ``into``. The draws of a ``PyroMCMC`` are of another model. Without ``into``, a part is in no
            registry. Nothing was changed.
    """
    arrays, meta = storage.read(arguments.path("path", path))
    kind = {"pair": LatentVariableModel, "baseline": Fitted}.get(str(meta.get("kind")))
    if kind is None:
        raise bad_value(
            "path", "a file that save() wrote", f"one of kind {meta.get('kind')!r}", "Pass a saved model."
        )
    if into is not None and not isinstance(into, kind):
        raise bad_type(
            "into",
            f"a {meta['kind']}, because one was saved",
            f"a {type(into).__name__}",
            f"Pass an instance of {meta['class']}.",
        )
    try:
        loader: Any = _load_pair if kind is LatentVariableModel else _load_baseline
        return loader(arrays, meta, into)
    except (LookupError, AttributeError, TypeError, StopIteration, RecursionError) as error:
        # The digest is right, but another version's save wrote the file.
        raise bad_value(
            "path",
            "a model as this version saves it",
            f"one saved by {_by(meta)} ({type(error).__name__}: {error})",
            "Nothing was changed. Load it with that version.",
        ) from error


def _versions() -> dict[str, str]:
    from pyrovae import __version__

    return {
        "pyrovae": __version__,
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _by(meta: Mapping[str, Any]) -> str:
    versions = meta.get("versions", {})
    return ", ".join(f"{name} {versions.get(name)}" for name in ("pyrovae", "torch", "pyro"))


# ---------------------------------------------------------------------------------------------------------
# Pairs


def _pair_record(pair: LatentVariableModel, arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return a pair's record as JSON; its tensors go into ``arrays``."""
    tensors = tensors_of(pair)
    arrays |= {name: tensor.detach() for name, tensor in tensors.items()}
    return {
        "kind": "pair",
        "class": type(pair).__name__,
        "architecture": _architecture(pair, arrays),
        "tensors": list(tensors),
        "frozen": frozen(pair),
        "modules": _modules(pair),
        "constraints": {name: _packed_constraint(pair.constraints[name]) for name in _declared(pair)},
        "fitted": storage.pack(None if pair.fitted is None else vars(pair.fitted), arrays, "fitted"),
    }


def _load_pair(
    arrays: Mapping[str, Tensor], meta: Mapping[str, Any], into: LatentVariableModel | None
) -> LatentVariableModel:
    """Return the saved pair, or ``into`` with its values."""
    fitted = storage.unpack(meta["fitted"], arrays)
    record = None if fitted is None else FitRecord(**fitted)
    saved = {name: arrays[name] for name in meta["tensors"]}
    modes = {name: bool(module["training"]) for name, module in meta["modules"].items()}
    pair = _built(meta["architecture"], arrays) if into is None else into
    declared = _fill_for(pair, meta, saved) if into is not None else {}
    _check_same(pair, meta, saved, declared, dtypes=into is not None)
    if into is None:
        for name, tensor in tensors_of(pair).items():
            tensor.data = saved[name]  # the dtype differs if the model was cast
    else:
        _copy(tensors_of(pair), saved)
        pair.fill(declared)
    set_settings(pair, {"frozen": meta["frozen"], "training": modes})
    pair.fitted = record
    return pair


def _roots(pair: LatentVariableModel) -> dict[str, nn.Module]:
    """Return the modules with a pair's tensors, by name: the pair itself and modules its plain functions refer to."""
    roots: dict[str, nn.Module] = {"pair": pair}
    own = {id(module) for module in pair.modules()}
    for part in ("model", "guide"):
        for name, module in referred(getattr(pair, part)).items():
            if id(module) not in own:
                roots[f"{part}.{name}"] = module
    return roots


def _named_modules(pair: LatentVariableModel) -> dict[str, nn.Module]:
    """Return every module of a pair under each of its names, except the one for parameters of plain functions."""
    return {
        f"{root}:{name}": module
        for root, holder in _roots(pair).items()
        for name, module in holder.named_modules(remove_duplicate=False)
        if module is not pair.declared
    }


def tensors_of(pair: LatentVariableModel) -> dict[str, Tensor]:
    """Return every parameter and buffer of a pair, under each of its names."""
    return _held(pair) | {f"store:{name}": pair.stored[name] for name in _declared(pair)}


def _held(pair: LatentVariableModel) -> dict[str, Tensor]:
    """Return the parameters and buffers of a pair's modules, including those that torch would not save."""
    return {
        f"{name}.{attribute}": tensor
        for name, module in _named_modules(pair).items()
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }


def _declared(pair: LatentVariableModel) -> list[str]:
    """Return names in the pair's parameter store whose values no module holds: of pyro.param in plain functions."""
    held = {id(tensor) for tensor in _held(pair).values()}
    found = [name for name, value in pair.stored.items() if id(value) not in held]
    # A VAE declares its modules' parameters; other names belong to modules that have been replaced.
    return [name for name in found if not (isinstance(pair, VAE) and name.startswith("vae-"))]


def _modules(pair: LatentVariableModel) -> dict[str, dict[str, Any]]:
    """Return every module's mode and, if a registry knows it, class and arguments."""
    return {
        name: {"training": module.training, "is": _identity(module)}
        for name, module in _named_modules(pair).items()
    }


def frozen(pair: LatentVariableModel) -> list[str]:
    """Return which parameters of a pair are frozen, by the names of ``tensors_of``."""
    tensors = tensors_of(pair).items()
    return [name for name, t in tensors if isinstance(t, nn.Parameter) and not t.requires_grad]


def settings_of(pair: LatentVariableModel) -> dict[str, Any]:
    """Return which parameters of a pair are frozen, and whether each module is in training mode."""
    modes = {name: module.training for name, module in _named_modules(pair).items()}
    return {"frozen": frozen(pair), "training": modes}


def set_settings(pair: LatentVariableModel, settings: Mapping[str, Any]) -> None:
    """Freeze parameters and set modes as ``settings_of`` found them; modules that it did not find keep their mode."""
    names = set(settings["frozen"])
    for name, tensor in tensors_of(pair).items():
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(name not in names)
    for name, module in _named_modules(pair).items():
        module.training = settings["training"].get(name, module.training)


def values_of(pair: LatentVariableModel, objective: object) -> dict[str, dict[str, Any]]:
    """Return the numbers, strings, booleans and None in attributes of a pair's modules and of an objective, by place."""
    places: dict[str, Any] = {**_named_modules(pair), _OBJECTIVE: objective}
    found = {}
    for place, holder in places.items():
        own = _OWN if holder is pair else {"training"}
        found[place] = {
            name: value for name, value in vars(holder).items() if name not in own and _fits_a_file(value)
        }
    return found


def set_values(pair: LatentVariableModel, objective: object, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes as ``values_of`` found them, unless they now hold something else, such as a tensor."""
    places: dict[str, Any] = {**_named_modules(pair), _OBJECTIVE: objective}
    for place in values.keys() & places.keys():
        attributes = vars(places[place])
        for name, value in values[place].items():
            if is_plain(attributes.get(name)):
                attributes[name] = value[()] if isinstance(value, np.ndarray) else value


def _fits_a_file(value: object) -> bool:
    """Return whether a plain value returns from a file as it was; those of numpy do if they are put into arrays."""
    if isinstance(value, np.generic):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    return is_plain(value) and type(value) in (bool, int, float, str, type(None))


def _check_same(
    pair: LatentVariableModel,
    meta: Mapping[str, Any],
    saved: Mapping[str, Tensor],
    declared: Mapping[str, Any],
    dtypes: bool,
) -> None:
    """Raise ``ValueError`` if a pair differs from the saved one, before anything in it is changed."""
    saved_table = meta["architecture"].get("table")
    if "unknown" not in meta["architecture"] and saved_table != _table(pair):
        raise _other("the saved model's table", "another one" if _table(pair) else "a model without one")
    tensors = tensors_of(pair)
    here = [*tensors, *(f"store:{name}" for name in declared)]
    _check_names("parameters and buffers", saved, here)
    modules = _modules(pair)
    _check_names("modules", meta["modules"], modules)
    for name, module in modules.items():
        if module["is"] != meta["modules"][name]["is"]:
            raise _other(f"{meta['modules'][name]['is']} at {name}", f"{module['is']}")
    # The dtype of these buffers follows from the rows that they were learned from.
    scalings = {
        id(buffer)
        for module in pair.every_module()
        if isinstance(module, networks.Standardize)
        for buffer in module.buffers(recurse=False)
    }
    for name, tensor in tensors.items():
        recast = dtypes and tensor.dtype != saved[name].dtype and id(tensor) not in scalings
        if tensor.shape != saved[name].shape or recast:
            raise _other(
                f"{name} of shape {tuple(saved[name].shape)}, {saved[name].dtype}",
                f"{tuple(tensor.shape)}, {tensor.dtype}",
            )
    for name in _declared(pair):
        constraint = _packed_constraint(pair.constraints[name])
        if constraint != meta["constraints"][name]:
            raise _other(
                f"{name!r} with the constraint {meta['constraints'][name]}", f"the constraint {constraint}"
            )
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        other = first.setdefault(id(tensor), name)
        if saved[name] is not saved[other]:  # shared tensors are read as one tensor
            raise _other(f"{other} and {name} as two tensors", "one")


def _check_names(what: str, saved: Mapping[str, Any], here: Any) -> None:
    missing, more = [name for name in saved if name not in here], [name for name in here if name not in saved]
    if missing or more:
        came = [f"{len(missing)} missing, first {missing[0]!r}"] if missing else []
        came += [f"{len(more)} more, first {more[0]!r}"] if more else []
        raise _other(f"the {len(saved)} {what} that were saved", "; ".join(came))


def _other(expected: str, came: str) -> Refused:
    return bad_value(
        "into", expected, came, "Build it by the code that built the saved model. Nothing was changed."
    )


def _copy(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Write all tensors in place, or none if an error occurs."""
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        try:
            for name, tensor in tensors.items():
                _put(tensor, saved[name])
        except BaseException:
            for name, tensor in tensors.items():
                if tensor.dtype != before[name].dtype or not torch.equal(tensor, before[name]):
                    _put(tensor, before[name])
            raise


def _put(tensor: Tensor, value: Tensor) -> None:
    """Write a value into a tensor, and change the tensor's dtype if it differs."""
    if tensor.dtype == value.dtype:
        tensor.copy_(value)
    else:
        tensor.data = value.to(tensor.device)


def _fill_for(
    pair: LatentVariableModel, meta: Mapping[str, Any], saved: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Any]]:
    """Return values and constraints, by name, for the empty parameter store of a pair that has not run yet."""
    if pair.stored or not meta["constraints"]:
        return {}
    found = {}
    for name, packed in meta["constraints"].items():
        constraint = None if packed is None else _constraint(packed)
        # pyro.module does not write stored values into a module that load cannot find.
        if constraint is None or "$$$" in name:
            raise bad_value(
                "into",
                f"a pair that has declared {name!r}",
                "one that has not run yet",
                "Run it once: pv.log_weights(pair, x, num_samples=1). Nothing was changed.",
            )
        found[name] = (saved[f"store:{name}"].to(pair.device or "cpu"), constraint)
    return found


# Constraints that pyro.param takes, by name: first those with bounds, then those without arguments.
_BOUNDED = {
    getattr(constraints, name): name
    for name in (
        "greater_than",
        "greater_than_eq",
        "less_than",
        "interval",
        "half_open_interval",
        "independent",
    )
}
_SINGLE = {
    type(value): name
    for name, value in vars(constraints).items()
    if isinstance(value, constraints.Constraint) and not inspect.signature(type(value)).parameters
}


def _packed_constraint(constraint: Any) -> Any:
    """Return a constraint as JSON, or None if it has no name."""
    if type(constraint) in _SINGLE:
        return _SINGLE[type(constraint)]
    if type(constraint) not in _BOUNDED:
        return None
    arguments = [getattr(constraint, name) for name in inspect.signature(type(constraint)).parameters]
    packed = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            argument = argument.item() if argument.numel() == 1 else None
        if isinstance(argument, constraints.Constraint):
            argument = _packed_constraint(argument)
        if argument is None:
            return None
        packed.append(argument)
    return [_BOUNDED[type(constraint)], *packed]


def _constraint(packed: Any) -> Any:
    """Return the constraint that ``_packed_constraint`` packed; raises ``ValueError`` for other values."""
    match packed:
        case str() if packed in _SINGLE.values():
            return getattr(constraints, packed)
        case ["independent", base, int(count)]:
            return constraints.independent(_constraint(base), count)
        case [str(name), *bounds] if name in _BOUNDED.values() and all(
            isinstance(bound, int | float) for bound in bounds
        ):
            return getattr(constraints, name)(*bounds)
    raise bad_value(
        "path",
        "constraints that pyro.param takes, by their names",
        shown(packed),
        "Nothing was changed. Load the file with the version that wrote it.",
    )


# ---------------------------------------------------------------------------------------------------------
# Architecture: modules by the names of the registries, and built from them


class _NotInARegistry(Exception):
    """The reason why a model cannot be rebuilt from names."""


def _name(cls: type) -> str | None:
    """Return the registry and name of a class, or None."""
    return next(
        (
            f"{registry}/{name}"
            for registry, known in _REGISTRIES.items()
            for name, c in known.items()
            if c is cls
        ),
        None,
    )


def _arguments(module: nn.Module) -> dict[str, Any] | None:
    """Return the arguments that a module was built from, without defaults of torch's; None if unknown."""
    if type(module) is nn.Sequential:
        return dict(module._modules)
    if _name(type(module)) is None:
        return None
    if type(module).__module__.partition(".")[0] != "torch":
        return vars(module).get("arguments")
    found = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if hasattr(module, name):
            value = getattr(module, name)
            value = (
                value is not None if name == "bias" else value
            )  # the argument is a flag, the attribute a parameter
            if value != parameter.default:
                found[name] = value
    return found


def _identity(module: nn.Module) -> Any:
    """Return class and arguments as JSON, for comparison; None if no registry knows the module."""
    arguments = _arguments(module)
    if arguments is None:
        return None
    plain = {name: value for name, value in arguments.items() if not isinstance(value, nn.Module)}
    try:
        return {"class": _name(type(module)), "arguments": storage.pack(plain, {}, "arguments")}
    except TypeError:
        return {"class": _name(type(module)), "arguments": None}


def _architecture(pair: LatentVariableModel, arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return the modules of a VAE in the order to build them, or the reason why names do not suffice."""
    try:
        if type(pair) is not VAE:
            raise _NotInARegistry(f"a {type(pair).__name__}, which is made of code")
        modules: list[dict[str, Any]] = []
        more: dict[str, Tensor] = {}
        numbers: dict[int, int] = {}
        parts = {
            part: _describe(getattr(pair, part), part, modules, more, numbers)
            for part in ("prior", "likelihood", "encoder")
        }
        described = {"parts": parts, "modules": modules, "table": _table(pair)}
        # Changes after construction are not among the arguments.
        with torch.random.fork_rng(devices=[]):  # zuko draws random numbers to print
            difference = _difference(pair, _built(described, more))
        if difference:
            raise _NotInARegistry(f"{difference}, which was changed after it was built")
    except _NotInARegistry as reason:
        return {"unknown": str(reason)}
    arrays |= more
    return described


def _describe(
    module: nn.Module,
    where: str,
    modules: list[dict[str, Any]],
    arrays: dict[str, Tensor],
    numbers: dict[int, int],
) -> int:
    """Append a module after the modules it is built from, and return its number. A shared one is appended once."""
    if id(module) in numbers:
        return numbers[id(module)]
    arguments = _arguments(module)
    if arguments is None:
        raise _NotInARegistry(f"{where}, a {type(module).__name__}, which is in no registry")
    packed: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, nn.Module):
            packed[name] = {"module": _describe(value, f"{where}.{name}", modules, arrays, numbers)}
        else:
            try:
                packed[name] = {"value": storage.pack(value, arrays, f"argument:{where}.{name}")}
            except TypeError as error:
                raise _NotInARegistry(f"{where}.{name}, a {type(value).__name__}, which is code") from error
    modules.append({"class": _name(type(module)), "arguments": packed})
    numbers[id(module)] = len(modules) - 1
    return numbers[id(module)]


def _built(architecture: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> VAE:
    """Return a VAE built from the names of its parts, on the CPU; torch's generator stays unchanged."""
    if "unknown" in architecture:
        raise bad_value(
            "path",
            "a model with all parts in a registry",
            architecture["unknown"],
            "Build the model by its own code and load into it: pv.load(path, into=model).",
        )
    built: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for described in architecture["modules"]:
            registry, _, name = described["class"].partition("/")
            if name not in _REGISTRIES.get(registry, {}):
                raise bad_value(
                    "path",
                    "a model with all parts in a registry",
                    f"a part of the class {described['class']!r}",
                    "Import the code that registers it and load again, or call pv.load(path, into=model).",
                )
            arguments = {
                argument: built[content["module"]]
                if "module" in content
                else storage.unpack(content["value"], arrays)
                for argument, content in described["arguments"].items()
            }
            if described["class"] == "torch/Sequential":
                built.append(nn.Sequential(OrderedDict(arguments)))
            else:
                built.append(_REGISTRIES[registry][name](**arguments))
        vae = VAE(**{part: built[number] for part, number in architecture["parts"].items()}).cpu()
    table = architecture.get("table")  # files of earlier versions have none
    vae.table = None if table is None else Table.from_record(storage.unpack(table, arrays))
    return vae


def _table(pair: LatentVariableModel) -> Any:
    """Return the record of a VAE's table as JSON; None for other pairs."""
    table = getattr(pair, "table", None)
    return None if table is None else storage.pack(table.record(), {}, "table")


def _difference(pair: VAE, rebuilt: VAE) -> str | None:
    """Return the name of the first part in which a VAE differs from the rebuilt one; None if there is none."""
    ours, theirs = _named_modules(pair), _named_modules(rebuilt)
    if ours.keys() != theirs.keys():
        return sorted(ours.keys() ^ theirs.keys())[0]
    for name, module in ours.items():
        other = theirs[name]
        if module is not pair and (
            type(module) is not type(other)
            or module.extra_repr() != other.extra_repr()
            or _plain(module) != _plain(other)
        ):
            return name
    mine, others = tensors_of(pair), tensors_of(rebuilt)
    for name in mine.keys() | others.keys():
        if name not in mine or name not in others or mine[name].shape != others[name].shape:
            return name
    names = list(mine)
    for tied, untied in ((mine, others), (others, mine)):
        first: dict[int, str] = {}
        for name in names:
            if untied[first.setdefault(id(tied[name]), name)] is not untied[name]:
                return name
    return None


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, including hooks: numbers and strings by value, others by length or presence."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, bool | int | float | str):
            return value
        return len(value) if name.endswith("hooks") or isinstance(value, tuple | list) else None

    return {name: plain(name, value) for name, value in vars(module).items() if name != "training"}


# ---------------------------------------------------------------------------------------------------------
# Baselines


def _baseline_record(baseline: Fitted, arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return a baseline's constructor arguments, stored under their own names, and its other attributes."""
    attributes, cls = vars(baseline), type(baseline)
    derived = baseline.derived
    arguments = {name: attributes[name] for name in _argument_names(cls) if name not in derived}
    state = {name: value for name, value in attributes.items() if name not in (*arguments, *derived)}
    return {
        "kind": "baseline",
        "class": next((name for name, known in baselines.REGISTRY.items() if known is cls), cls.__name__),
        "arguments": {name: _packed_or_none(name, value, arrays) for name, value in arguments.items()},
        "state": storage.pack(state, arrays, "state"),
    }


def _argument_names(cls: type) -> list[str]:
    """Return the arguments of a constructor; those in **options by the names that the parent class has for them."""
    parameters = inspect.signature(cls).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    return names if len(names) == len(parameters) else names + _argument_names(cls.__mro__[1])


def _packed_or_none(name: str, value: Any, arrays: dict[str, Tensor]) -> Any:
    """Return an argument in a list of its own, or None if it is code."""
    try:
        return [storage.pack(value, arrays, f"argument:{name}")]
    except TypeError:
        return None


def _load_baseline(arrays: Mapping[str, Tensor], meta: Mapping[str, Any], into: Fitted | None) -> Fitted:
    """Return the saved baseline, or ``into`` with its values."""
    state = storage.unpack(meta["state"], arrays)
    if into is None:
        code = [name for name, packed in meta["arguments"].items() if packed is None]
        if code or meta["class"] not in baselines.REGISTRY:
            raise bad_value(
                "path",
                "a baseline in the registry, built from numbers and names",
                f"a {meta['class']}" + (f", whose {code[0]} is code" if code else ""),
                "Build it by its own code and load into it: pv.load(path, into=baseline).",
            )
        arguments = {name: storage.unpack(packed, arrays)[0] for name, packed in meta["arguments"].items()}
        into = baselines.REGISTRY[meta["class"]](**arguments)
    else:
        here = _baseline_record(into, {})
        for key in ("class", "arguments"):
            if here[key] != meta[key]:
                raise _other(f"{meta[key]}", f"{here[key]}")
    # All arguments, because a file of an earlier version lacks those that are new.
    known = (*meta["arguments"], *_argument_names(type(into)), *into.derived)
    kept = {name: value for name, value in vars(into).items() if name in known}
    with into._unchanged_on_error():
        vars(into).clear()
        vars(into).update(kept | state)
        into._derive()
    return into
