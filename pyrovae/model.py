"""Pairs: each is a Pyro model and a Pyro guide with their parameters. Training is in ``training``.

``LatentVariableModel`` holds any model and guide. ``VAE`` builds both from a prior, a likelihood and an encoder.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import ParamStoreDict, StateDict
from torch import Tensor, nn

from pyrovae import checks, encoders, likelihoods, noise, priors
from pyrovae.networks import MLP, Standardize, output_width, widths
from pyrovae.precision import products
from pyrovae.turns import takes_turns

# Advise to standardise if column sizes differ by more than the factor 100, or the largest is not in (0.01, 10).
# Networks are initialised for inputs of size one.
_UNEVEN, _LARGE = 100.0, 10.0
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


class LatentVariableModel(nn.Module):
    """Holds any Pyro model P(x, z) and guide Q(z | x) as one torch module.

    Both are called with a batch of rows, ``model(x)`` and ``guide(x)``. Both declare a plate of size ``len(x)``
    around every latent.

    If model or guide is a torch module, or a method of one, the pair has the module's parameters. PyroModules are
    included. Parameters that ``pyro.param`` and ``pyro.module`` declare in plain functions are in the pair's own
    parameter store. The first run of the pair fills this store. Pyro's global store supplies no values and is not
    changed.

    Args:
        model: callable with Pyro sample statements, the rows observed.
        guide: callable that samples every latent of the model.
        plate: name of the plate over rows, if several have the size of the batch.
        params: an existing parameter store whose values the pair uses, such as ``pyro.get_param_store()`` after
            training with ``pyro.infer.SVI``.

    Raises:
        TypeError: model or guide is not callable; plate is not a name; params is not a parameter store.
        ValueError: the guide is an autoguide: a point (AutoDelta), joint over all rows, or tied to the first rows.
            Model and guide have different PyroParams of one name.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> pair = LatentVariableModel(model, guide)
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    #: ``model.save(path)``: ``pyrovae.saving`` sets it.
    save: Callable[..., None]

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        plate: str | None = None,
        params: ParamStoreDict | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise checks.bad_type(
                    name, "a callable with Pyro statements", repr(function), "Pass a function or module."
                )
        _refuse_autoguide(guide)
        if plate is not None and not (isinstance(plate, str) and plate):
            raise checks.bad_type("plate", "the name of a plate", checks.shown(plate), "Pass a string.")
        # Stored in __dict__, so that torch registers modules once, as owners.
        self.__dict__["model"] = model
        self.__dict__["guide"] = guide
        self.owners = nn.ModuleList(_owners(model, guide))
        _refuse_homonyms(self.owners)
        self._open(plate, params)

    def described(self) -> list[str]:
        """Return a cheap description of the pair's Python state: modules, their plain attributes, functions' code.

        A change means that a graph of the pair has to be traced again. Pairs that compute different things may have the
        same description if closures, globals or partials differ. ``pair.behaviour`` compares computed values instead.
        """
        found = [repr(self)]
        for module in self.every_module():
            plain = plain_attributes(module)
            for passing in ("training", "name"):  # the mode changes; the name differs for every VAE
                plain.pop(passing, None)
            found.append(f"{type(module).__qualname__} {sorted(plain.items())}")
        for function in (self.model, self.guide):
            code = getattr(_unwrapped(function), "__code__", None)
            if code is not None:
                constants = [c for c in code.co_consts if isinstance(c, bool | int | float | str | tuple)]
                cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
                plain_cells = [c for c in cells if isinstance(c, bool | int | float | str)]
                found.append(f"{code.co_code.hex()} {code.co_names} {constants} {plain_cells}")
        return found

    @property
    def seen(self) -> np.ndarray | None:
        """The ``checks.row_hashes`` of the rows that the pair was fitted to, shape (rows, 2); None before a fit."""
        return None if self.fitted is None else self.fitted["seen"]

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The column names that the pair was fitted to, by the name of each frame in the batch; empty before a fit."""
        return {} if self.fitted is None else dict(self.fitted.get("names", {}))

    def checked(
        self, x: Any, argument: str = "x", names: Mapping[str, tuple[str, ...]] | None = None
    ) -> tuple[dict[str, Tensor], checks.Source]:
        """Return rows as a checked batch on the pair's device, and the ``checks.Source`` of the rows.

        The batch is in the pair's dtype, or in float64 if the pair allows it. Columns must have the names that the
        pair was fitted to. Before a fit, they must have those in ``names``, if given.
        """
        double, spread = self._rounding()
        return checks.read(
            x,
            dtype=self.dtype,
            device=self.device,
            argument=argument,
            names={**(names or {}), **self.names},
            double=double,
            spread=spread,
        )

    def _rounding(self) -> tuple[str, Tensor | None]:
        """Return the arguments ``double`` and ``spread`` of ``checks.read``."""
        spread = None if self.fitted is None else self.fitted.get("spread")
        return "lossy" if self.dtype is None else "never", spread  # an unknown dtype may be float64

    def _open(self, plate: str | None = None, params: ParamStoreDict | dict[str, Any] | None = None) -> None:
        """Set up the pair's own parameter store."""
        self.plate = plate
        self.fitted: dict[str, Any] | None = None  # the record that ``fit`` leaves: see ``training``
        self._adopted = params is not None
        self._filled = False  # True if a file filled the store before the first run
        self._store = _store_state(params)
        self.declared = nn.Module()  # holds what pyro.param and pyro.module declared in plain functions
        self._register_declared()

    @contextmanager
    def own_parameters(self) -> Iterator[None]:
        """Run a block in which Pyro's parameter statements use this pair's store instead of the global one."""
        known = set(self._store["params"])
        with pyro.get_param_store().scope(self._store):
            yield
        if self._store["params"].keys() != known:
            self._refuse_taken_names(known)
            self._refuse_unsaved_names(known)
            self._register_declared()

    def _refuse_taken_names(self, known: set[str]) -> None:
        """Raise ``ValueError`` if the pair newly declares a name that the global store already holds.

        The global value may come from training this pair, so the pair must not restart it silently.
        """
        if self._adopted:
            return
        owned = {id(p) for p in self.owners_parameters()}
        new = {
            name: p for name, p in self._store["params"].items() if name not in known and id(p) not in owned
        }
        taken = sorted(name for name in new if name in pyro.get_param_store())
        if taken:
            for name in self._store["params"].keys() - known:
                del self._store["params"][name], self._store["constraints"][name]
            raise checks.bad_value(
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
        new = [name for name, p in self._store["params"].items() if name not in known and id(p) not in held]
        if self._filled and new:
            for name in new:
                del self._store["params"][name], self._store["constraints"][name]
            raise checks.bad_value(
                "params",
                "names that were in the file this pair was loaded from",
                f"{len(new)} that were not, first {new[0]!r}",
                "Load a file that was saved by the same code.",
            )

    def _register_declared(self) -> None:
        """Make declared parameters visible to torch: .parameters(), .double(), .to(device)."""
        known = {id(p) for p in self.parameters()}
        for name, value in self._store["params"].items():
            if id(value) in known:
                continue
            attribute = name.replace(".", "/")  # torch forbids dots in a parameter's name
            if hasattr(self.declared, attribute):  # and names of a module's own attributes, such as "half"
                attribute += "/"
            if not isinstance(value, nn.Parameter):
                value = self._store["params"][name] = nn.Parameter(value.detach().clone())
            self.declared.register_parameter(attribute, value)

    @contextmanager
    def nothing_declared_on_error(self) -> Iterator[None]:
        """Run a block; if it raises, remove the parameters that pyro.param and pyro.module declared in it."""
        known = set(self._store["params"])
        try:
            yield
        except BaseException:
            for name in self._store["params"].keys() - known:
                del self._store["params"][name], self._store["constraints"][name]
            kept = {id(p) for p in self._store["params"].values()}
            for attribute, parameter in list(self.declared._parameters.items()):
                if id(parameter) not in kept:
                    del self.declared._parameters[attribute]
            raise

    def check_numbers(self) -> None:
        """Raise an error for parameters and buffers that cannot be used.

        Raises:
            TypeError: parameters in another dtype than float32 and float64; a tensor on the meta device.
            ValueError: a tensor made in inference mode.
        """
        if self.dtype is not None and self.dtype not in checks.FLOATS:
            raise checks.bad_type(
                "pair",
                "parameters in float32 or float64",
                f"parameters in {self.dtype}",
                'Cast them: model.float(). For faster training pass fit(..., precision="medium").',
            )
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if tensor.device.type == "meta":
                raise checks.bad_type(
                    "pair",
                    "parameters with numbers in them",
                    f"{name} on the meta device",
                    "Build the model on a real device.",
                )
            if tensor.is_inference():
                raise checks.bad_value(
                    "pair",
                    "parameters that were made outside torch.inference_mode()",
                    f"{name}, made inside",
                    "Build, copy or load the model outside.",
                )

    def fix_of_rows(self, x: Tensor, numbers: Tensor | None = None) -> str:
        """Return the advice for networks that overflow on rows of x, with the position of the largest entry.

        ``numbers`` are the row numbers to report, shape (rows,); the default counts from 0.
        """
        row, column, value = checks.largest(x)
        row = row if numbers is None else int(numbers[row])
        largest = f"The largest entry is {value:g}, in row {row}, column {column}; in training lower lr or set clip_norm."
        return f"{self.fix_of_scales(x)} {largest}".lstrip()

    def fix_of_scales(self, x: Tensor) -> str:
        """Return the advice on the columns' scales; empty if these are near one or the pair standardises x."""
        smallest, largest = checks.sizes(x)
        how = self._standardising
        if how and largest > _UNEVEN * smallest:
            return f"Columns have very different scales, of size {smallest:.2g} to {largest:.2g}: {how}."
        if how and not 1 / _UNEVEN < largest < _LARGE:
            return f"Columns are of size {largest:.2g}, and networks start out for size one: {how}."
        return ""

    @property
    def _standardising(self) -> str:
        """How to standardise the columns, in words; empty if the pair does so itself."""
        return "standardise them first, by numbers taken from the training rows"

    def every_module(self) -> Iterator[nn.Module]:
        """Yield the pair's modules and those that its plain functions refer to, for example to pass to pyro.module."""
        yield from self.modules()
        for function in (self.model, self.guide):
            for module in _referred(function):
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
        for module, _ in modes:
            module.training = training
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

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
    def device(self) -> torch.device | None:
        """The device of the first float parameter or buffer; None if there are none yet."""
        return next((p.device for p in self._floating()), None)

    def _floating(self) -> Iterator[Tensor]:
        yield from (p for p in self.parameters() if p.is_floating_point())
        yield from (b for b in self.buffers() if b.is_floating_point())


class VAE(LatentVariableModel):
    """A variational autoencoder: P(x, z) = P_Φ(x | z) P_Ω(z), encoder Q_Ψ(z | x).

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014). ``vae.model`` and ``vae.guide`` are
    ordinary Pyro callables, which ``pyro.infer.SVI`` can also train.

    Args:
        prior: module whose forward() returns the distribution of z, event shape (latent_dim,).
        likelihood: module whose forward(z) returns the distribution of a row of x.
        encoder: module whose forward(x) returns a distribution of z for each row.

    Raises:
        TypeError: a part is not a torch module.
        ValueError: likelihood or encoder has a width that does not fit the prior's number of latent dimensions; a
            VampPrior has another encoder than the VAE.

    Example:
        >>> from pyrovae import priors, likelihoods, encoders
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(MLP(2, (16,), 64)),
        ...     encoder=encoders.DiagonalNormal(MLP(64, (16,), 2 * 2)),
        ... )
        >>> vae.sample(3, seed=0).shape
        torch.Size([3, 64])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, encoder: nn.Module) -> None:
        nn.Module.__init__(self)
        for name, part in (("prior", prior), ("likelihood", likelihood), ("encoder", encoder)):
            if not isinstance(part, nn.Module):
                raise checks.bad_type(
                    name,
                    "a torch module whose forward returns a Pyro distribution",
                    repr(part),
                    f"Take one of pyrovae.{name}s or write one.",
                )
        if isinstance(prior, priors.VampPrior) and prior.encoder is not encoder:
            raise checks.bad_value(
                "prior",
                "a VampPrior made of the VAE's own encoder",
                "one of another",
                "Build the encoder first, and hand the same object to VampPrior and to VAE.",
            )
        self._check_widths(prior, likelihood, encoder)
        self.prior = prior
        self.likelihood = likelihood
        self.encoder = encoder
        self.name = _unique_name()
        self._open()

    def model(self, x: Tensor, **context: Tensor) -> None:
        """Run P(x, z): rows of x, shape (batch, ...), observed at site "x"; latent site "z".

        Values beside the rows, such as an offset, are passed to the likelihood.
        """
        self._declare()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z, **context), obs=x)

    def guide(self, x: Tensor, **context: Tensor) -> None:
        """Run Q(z | x): latent site "z" for rows of x, shape (batch, ...). Values beside the rows are ignored."""
        self._declare()
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    def _declare(self) -> None:
        """Declare parameters as ``pyro.module(self.name, self)`` does, without its warning about frozen ones."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pyro.param(f"{self.name}$$${name}", parameter)

    @classmethod
    @takes_turns
    def mlp(
        cls,
        data_dim: int,
        latent_dim: int,
        likelihood: str = "bernoulli",
        hidden_dims: Sequence[int] = (200, 200),
        activation: str = "relu",
        prior: str = "standard_normal",
        encoder: str = "diagonal_normal",
        standardize: bool = False,
        **likelihood_options: Any,
    ) -> VAE:
        """Return a VAE whose networks are multilayer perceptrons and whose parts are chosen by name.

        Args:
            data_dim: entries in a row of x.
            latent_dim: entries of z.
            likelihood: a family's name in ``likelihoods.REGISTRY``.
            hidden_dims: hidden widths of the encoder; the decoder has them in reverse order.
            activation: one of ``networks.ACTIVATIONS``.
            prior: a name in ``priors.REGISTRY``. The prior must need no argument but ``latent_dim``.
            encoder: a name in ``encoders.REGISTRY``. The encoder must need no argument but its network.
            standardize: whether networks see standardised rows. The first fit learns mean and scale from its rows.
                The encoder then sees standardised x, whatever the family. If the family has a location and a
                scale, the decoder returns those of standardised x, and they are transformed back. log P(x) stays in
                x's own units. Such a family takes rows in float64 whatever the networks' dtype, because the mean
                is subtracted before any rounding.
            likelihood_options: passed to the family. ``scale`` of a Gaussian is a number, ``"shared"``,
                ``"per_dimension"`` or ``"decoder"``.

        Example:
            >>> vae = VAE.mlp(64, latent_dim=2, likelihood="gaussian", scale="shared")
        """
        checks.choice("likelihood", likelihood, tuple(likelihoods.REGISTRY))
        family = likelihoods.REGISTRY[likelihood]
        checks.options(likelihood, family, likelihood_options, taken=("network", "standardize"))
        checks.choice("prior", prior, _of_one_argument(priors.REGISTRY))
        checks.choice("encoder", encoder, _of_one_argument(encoders.REGISTRY))
        checks.integer("data_dim", data_dim)
        checks.integer("latent_dim", latent_dim)
        hidden = widths("hidden_dims", hidden_dims)
        outputs = family.outputs_per_dimension(**likelihood_options) * data_dim
        scaling = None
        if checks.boolean("standardize", standardize):
            scaling = Standardize(data_dim, log=family.standardizes == "log x")
            if family.standardizes:
                likelihood_options["standardize"] = scaling
        return cls(
            prior=priors.REGISTRY[prior](latent_dim),
            likelihood=family(MLP(latent_dim, hidden[::-1], outputs, activation), **likelihood_options),
            encoder=encoders.REGISTRY[encoder](
                MLP(data_dim, hidden, encoders.REGISTRY[encoder].outputs(latent_dim), activation),
                standardize=scaling,
            ),
        )

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0, **context: Tensor) -> Tensor:
        """Return rows drawn from P(x), shape (num_rows, ...): z from the prior, x from the likelihood.

        Other arguments of the likelihood, such as offsets of shape (num_rows,), are passed by name.
        """
        checks.integer("num_rows", num_rows)
        self.check_numbers()
        self._refuse_untaken(context)
        for name, value in context.items():
            context[name] = checks.rows(value, dtype=self.dtype, device=self.device, argument=name)
            if len(context[name]) != num_rows:
                raise checks.bad_value(
                    name,
                    f"one for each of the {num_rows} rows",
                    f"{len(context[name])} of them",
                    "Pass as many.",
                )
        with self.evaluating(), noise.seeded(noise.derive(seed, noise.Stream.SAMPLE), self.device):
            return self.likelihood(self.prior().sample((num_rows,)), **context).sample()

    @takes_turns
    def reconstruct(self, x: Any, seed: int = 0) -> Tensor:
        """Return the mean of P(x | z) for one draw z ~ Q(z | x) per row, in the shape of the likelihood's rows."""
        self.check_numbers()
        context, _ = self.checked(x)
        rows = context.pop("x")
        self._refuse_untaken(context)
        seeded = noise.seeded(noise.derive(seed, noise.Stream.RECONSTRUCT), self.device)
        with self.evaluating(), seeded, checks.parameters_hold(fix=lambda: self.fix_of_rows(rows)):
            return self.likelihood(self.encoder(rows).sample(), **context).mean

    def _refuse_untaken(self, context: Mapping[str, Tensor]) -> None:
        """Raise ``ValueError`` for a value beside the rows that is not an argument of the likelihood's forward."""
        parameters = inspect.signature(self.likelihood.forward).parameters
        taken = list(parameters)[1:]  # without z
        for name in context:
            if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise checks.bad_value(
                    name,
                    f"what {type(self.likelihood).__name__} takes beside z: {', '.join(taken) or 'nothing'}",
                    f"{name}=…",
                    "Leave it out.",
                )

    @property
    def _standardising(self) -> str:
        if any(isinstance(module, Standardize) for module in self.modules()):
            return ""
        return "build the model with standardize=True"

    def _rounding(self) -> tuple[str, Tensor | None]:
        double, spread = super()._rounding()
        # Rows need no rounding if encoder and likelihood first standardise them in float64.
        scaling = getattr(self.encoder, "standardize", None)
        both = isinstance(self.encoder, encoders.Encoder) and scaling is getattr(
            self.likelihood, "standardize", None
        )
        if not isinstance(scaling, Standardize) or not both:
            return double, spread
        if not bool(scaling.learned):
            return "lossy", spread
        return "always" if scaling.loc.dtype == torch.float64 else double, spread

    def owners_parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.prior, self.likelihood, self.encoder):
            yield from part.parameters()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy gets its own name: two VAEs of one name would share parameters in Pyro's store.
        super().__setstate__(state)
        self.name = _unique_name()

    @staticmethod
    def _check_widths(prior: nn.Module, likelihood: nn.Module, encoder: nn.Module) -> None:
        """Raise ``ValueError`` if the parts' known widths disagree; a run of the pair checks the unknown ones."""
        latent_dim = getattr(prior, "latent_dim", None)
        if latent_dim is None:
            return
        decoder_takes = getattr(getattr(likelihood, "network", None), "in_features", latent_dim)
        if decoder_takes != latent_dim:
            raise checks.bad_value(
                "likelihood",
                f"a network that takes {latent_dim} latent dimensions, as the prior has",
                str(decoder_takes),
                "Give both the same number.",
            )
        if not isinstance(encoder, encoders.Encoder):
            return
        width, outputs = output_width(encoder.network), encoder.outputs(latent_dim)
        if width is not None and width != outputs:
            raise checks.bad_value(
                "encoder",
                f"a network with {outputs} outputs for {latent_dim} latent dimensions",
                str(width),
                f"Give it {type(encoder).__name__}.outputs({latent_dim}) outputs.",
            )


@contextmanager
def _device_is_here() -> Iterator[None]:
    """Run a block that moves tensors; raise ``ValueError`` if this machine or its torch does not have the device."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        if not any(words in str(error) for words in _NO_DEVICE):
            raise
        came = str(error).splitlines()[0].rstrip(".")
        raise checks.bad_value(
            "device",
            "one that this machine and its torch have",
            came.rpartition("device string: ")[2],
            "Stay on the CPU, or install a torch that is built for the device.",
        ) from error


def _of_one_argument(registry: Mapping[str, type]) -> tuple[str, ...]:
    """Return the names of classes with exactly one required argument."""
    return tuple(
        name
        for name, family in registry.items()
        if sum(p.default is p.empty for p in inspect.signature(family).parameters.values()) == 1
    )


def _unique_name() -> str:
    """Return a unique name for one VAE in Pyro's global store, which identifies parameters by name only."""
    return f"vae-{uuid.uuid4().hex}"


def _owners(*functions: Callable[..., Any]) -> list[nn.Module]:
    """Return the torch modules that functions are, or are bound methods of, each once."""
    plain = (_unwrapped(function) for function in functions)
    found = (getattr(function, "__self__", function) for function in plain)
    return list({id(owner): owner for owner in found if isinstance(owner, nn.Module)}.values())


def plain_attributes(module: nn.Module) -> dict[str, bool | int | float | str]:
    """Return a module's attributes that are bools, ints, floats or strings, by name."""
    return {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside ``functools.partial`` and decorators that use ``functools.wraps``."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    return function


def _referred(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the torch modules that a plain function's own code names: closure variables and globals."""
    function = _unwrapped(function)
    if not inspect.isfunction(function):
        return []
    variables = inspect.getclosurevars(function)
    found = [*variables.nonlocals.values(), *variables.globals.values()]
    return [value for value in found if isinstance(value, nn.Module)]


def _refuse_homonyms(owners: nn.ModuleList) -> None:
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
                raise checks.bad_value(
                    "guide",
                    "PyroParams of other names than the model's",
                    f"two named {name.strip('.').removesuffix('_unconstrained')!r}, which Pyro would make one",
                    'Rename one, or name the module: super().__init__("guide").',
                )


def _store_state(params: ParamStoreDict | dict[str, Any] | None) -> StateDict:
    if params is None:
        return {"params": {}, "constraints": {}}
    if isinstance(params, ParamStoreDict):
        return params.get_state()
    if isinstance(params, dict) and params.keys() == {"params", "constraints"}:
        return {"params": dict(params["params"]), "constraints": dict(params["constraints"])}
    raise checks.bad_type(
        "params",
        "a Pyro parameter store or its get_state()",
        f"a {type(params).__name__}",
        "Pass pyro.get_param_store().",
    )


def _refuse_autoguide(guide: Callable[..., Any]) -> None:
    """Raise ``ValueError`` if the guide is an autoguide.

    An autoguide keeps a posterior for the rows of its first call. A pair's guide must accept any batch of rows.
    """
    from pyro.infer import autoguide

    if not isinstance(guide, autoguide.AutoGuide):
        return
    if isinstance(guide, autoguide.AutoDelta):
        reason = "is a point, not a distribution: it has no density to weigh with"
    elif isinstance(guide, autoguide.AutoContinuous):
        reason = "is joint over all rows: a row has no weight of its own"
    else:
        reason = "is tied to the rows it was first called with"
    raise checks.bad_value(
        "guide",
        "a distribution of each row's latents given that row",
        f"{type(guide).__name__}, which {reason}",
        "Write a guide that encodes x, as in pyrovae.encoders.",
    )
