"""The pair: a Pyro model and a Pyro guide, with their parameters. No training inside.

``LatentVariableModel`` holds anybody's pair; ``VAE`` is one whose model and guide are made of a prior, a
likelihood and an encoder.
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

# Columns that differ in size by so much drown the small ones; networks start out for numbers of size one.
_UNEVEN, _LARGE = 100.0, 10.0
# How torch says that there is no such device.
_NO_DEVICE = (
    "not compiled",
    "not linked",
    "NVIDIA driver",
    "No CUDA GPUs",
    "invalid device ordinal",
    "No HIP GPUs",
    "device string",  # of another name
)


class LatentVariableModel(nn.Module):
    """Anybody's Pyro model P(x, z) and guide Q(z | x), as one torch module.

    Both are called with a batch of rows, ``model(x)`` and ``guide(x)``, and declare a plate of size
    ``len(x)`` around every latent.

    Parameters come from where the pair keeps them. PyroModules and plain torch modules, and the objects
    of bound methods, contribute their own. What ``pyro.param`` and ``pyro.module`` declare inside plain
    functions lives in a parameter store of this pair's own, filled the first time the pair is run; the
    global store is neither read nor written.

    Args:
        model: callable with Pyro sample statements, the rows observed.
        guide: callable that samples every latent of the model.
        plate: name of the plate over rows, where several have the size of the batch.
        params: an existing parameter store whose values the pair is to use, such as
            ``pyro.get_param_store()`` after training with ``pyro.infer.SVI``.

    Raises:
        TypeError: model or guide is not callable, params is no parameter store.
        ValueError: the guide cannot serve: a point (AutoDelta), or tied to fixed rows (autoguides).

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
    #: ``model.save(path)``: see ``pyrovae.saving``, which puts it here.
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
        # In __dict__, so that torch does not register them a second time beside their owners.
        self.__dict__["model"] = model
        self.__dict__["guide"] = guide
        self.owners = nn.ModuleList(_owners(model, guide))
        _refuse_homonyms(self.owners)
        self._open(plate, params)

    def described(self) -> list[str]:
        """What is quickly known of the pair beside its numbers: modules' classes and plain attributes, and functions' code.

        Pairs that compute different things may be described alike, where closures, globals or partials differ: it says
        when a graph has to be made anew, and no more. ``pair.behaviour`` knows a pair by what it computes.
        """
        found = [repr(self)]
        for module in self.every_module():
            plain = plain_attributes(module)
            for passing in ("training", "name"):  # of the moment, and of one VAE
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
        """Hashes of the rows that ``fit`` has fitted the pair to, (rows, 2), by ``checks.row_hashes``; None before."""
        return None if self.fitted is None else self.fitted["seen"]

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the columns that ``fit`` has fitted the pair to, by the name of each frame among the rows."""
        return {} if self.fitted is None else dict(self.fitted.get("names", {}))

    def checked(
        self, x: Any, argument: str = "x", names: Mapping[str, tuple[str, ...]] | None = None
    ) -> tuple[dict[str, Tensor], checks.Source]:
        """Rows as a checked batch in the pair's dtype and on its device, and the rows as they came.

        Columns have the names that the pair was fitted to; before a fit those in ``names``, where they are given.
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
        """Whether rows may stay in float64, and the columns' standard deviations, as ``checks.read`` takes them."""
        spread = None if self.fitted is None else self.fitted.get("spread")
        return "lossy" if self.dtype is None else "never", spread  # a dtype that is not known may be float64

    def _open(self, plate: str | None = None, params: ParamStoreDict | dict[str, Any] | None = None) -> None:
        """Set up the pair's own parameter store."""
        self.plate = plate
        self.fitted: dict[str, Any] | None = None  # what ``fit`` leaves: see ``training``
        self._adopted = params is not None
        self._filled = False  # from a file, before the first run
        self._store = _store_state(params)
        self.declared = nn.Module()  # holds what pyro.param and pyro.module declared in plain functions
        self._register_declared()

    @contextmanager
    def own_parameters(self) -> Iterator[None]:
        """Run a block in which Pyro's parameter statements see this pair's store instead of the global one."""
        known = set(self._store["params"])
        with pyro.get_param_store().scope(self._store):
            yield
        if self._store["params"].keys() != known:
            self._refuse_taken_names(known)
            self._refuse_unsaved_names(known)
            self._register_declared()

    def _refuse_taken_names(self, known: set[str]) -> None:
        """A name that the global store holds already may be this pair's training: never restart it silently."""
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
        """What was filled from a file has all that it declares from there: never start a part of it anew silently."""
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
            attribute = name.replace(".", "/")  # torch forbids dots in a parameter's own name,
            if hasattr(self.declared, attribute):  # and names that a module has already: "half", "type"
                attribute += "/"
            if not isinstance(value, nn.Parameter):
                value = self._store["params"][name] = nn.Parameter(value.detach().clone())
            self.declared.register_parameter(attribute, value)

    @contextmanager
    def nothing_declared_on_error(self) -> Iterator[None]:
        """Run a block; if it raises, forget what pyro.param and pyro.module declared in it."""
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
        """Refuse parameters and buffers that can't be computed with: of 16 bits, without memory, made in inference mode."""
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
        """What to do where networks overflow on rows of x, and where its largest entry is; ``numbers`` are the rows'."""
        row, column, value = checks.largest(x)
        row = row if numbers is None else int(numbers[row])
        largest = f"The largest entry is {value:g}, in row {row}, column {column}; in training lower lr or set clip_norm."
        return f"{self.fix_of_scales(x)} {largest}".lstrip()

    def fix_of_scales(self, x: Tensor) -> str:
        """What to do about the sizes of columns; empty where they are near one, or brought there."""
        smallest, largest = checks.sizes(x)
        how = self._standardising
        if how and largest > _UNEVEN * smallest:
            return f"Columns have very different scales, of size {smallest:.2g} to {largest:.2g}: {how}."
        if how and not 1 / _UNEVEN < largest < _LARGE:
            return f"Columns are of size {largest:.2g}, and networks start out for size one: {how}."
        return ""

    @property
    def _standardising(self) -> str:
        """How columns can be brought to size one; empty where the pair does so itself."""
        return "standardise them first, by numbers taken from the training rows"

    def every_module(self) -> Iterator[nn.Module]:
        """The pair's modules, and those that its plain functions refer to, which they may hand to pyro.module."""
        yield from self.modules()
        for function in (self.model, self.guide):
            for module in _referred(function):
                yield from module.modules()

    def owners_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the modules that model and guide are or belong to."""
        return self.owners.parameters()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run a block in ``eval()`` mode, without gradients and with float32 products; then restore every module's mode."""
        with self._mode(training=False), torch.no_grad(), products("highest"):
            yield

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Run a block with gradients; a pair in ``eval()`` mode is put into ``train()`` mode for it.

        A pair in training mode keeps the mode of each of its modules: a part may be frozen on purpose.
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
        """As ``torch.nn.Module.to``; a device that this machine and its torch do not have is refused."""
        with _device_is_here():
            return super().to(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        with _device_is_here():
            return super()._apply(fn, recurse)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the parameters; None while there are none."""
        return next((p.dtype for p in self._floating()), None)

    @property
    def device(self) -> torch.device | None:
        """The device of the parameters; None while there are none."""
        return next((p.device for p in self._floating()), None)

    def _floating(self) -> Iterator[Tensor]:
        yield from (p for p in self.parameters() if p.is_floating_point())
        yield from (b for b in self.buffers() if b.is_floating_point())


class VAE(LatentVariableModel):
    """A variational autoencoder: P(x, z) = P_Φ(x | z) P_Ω(z), encoder Q_Ψ(z | x).

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014). ``vae.model`` and ``vae.guide`` are
    ordinary Pyro callables that plain ``pyro.infer.SVI`` trains as well.

    Args:
        prior: module whose forward() returns the distribution of z, event shape (latent_dim,).
        likelihood: module whose forward(z) returns the distribution of a row of x.
        encoder: module whose forward(x) returns a distribution of z for each row.

    Raises:
        TypeError: a part that is no torch module.
        ValueError: encoder and prior disagree about the number of latent dimensions.

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
        """P(x, z): rows of x, shape (batch, ...), observed at site "x"; latent site "z".

        What goes with the rows, such as an offset, is the likelihood's.
        """
        self._declare()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z, **context), obs=x)

    def guide(self, x: Tensor, **context: Tensor) -> None:
        """Q(z | x): latent site "z" for rows of x, shape (batch, ...); of the rows alone."""
        self._declare()
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    def _declare(self) -> None:
        """``pyro.module(self.name, self)``, silent about parameters that are frozen."""
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
        """A VAE whose networks are multilayer perceptrons, its parts by their names.

        Args:
            data_dim: entries in a row of x.
            latent_dim: entries of z.
            likelihood: a family's name in ``likelihoods.REGISTRY``.
            hidden_dims: hidden widths of the encoder; the decoder has them in reverse.
            activation: one of ``networks.ACTIVATIONS``.
            prior: the name in ``priors.REGISTRY`` of one that is built from ``latent_dim`` alone.
            encoder: a family's name in ``encoders.REGISTRY``.
            standardize: whether networks see standardised rows, learned from those of the first fit: the encoder
                of every family, and the decoder of a family with a location and a scale, which then are of
                standardised x and are taken back. log P(x) stays in x's own units. Such a family takes rows in
                float64 whatever the dtype of the networks: the mean is subtracted before anything is rounded.
            likelihood_options: passed to the family; ``scale`` of a Gaussian is a number, ``"shared"``,
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
        """Rows from P(x): z from the prior, x from the likelihood; shape (num_rows, ...).

        What the likelihood takes beside z, such as offsets of shape (num_rows,), is passed by its name.
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
        """The mean of P(x | z) for one z ~ Q(z | x) a row; as the likelihood shapes its rows."""
        self.check_numbers()
        context, _ = self.checked(x)
        rows = context.pop("x")
        self._refuse_untaken(context)
        seeded = noise.seeded(noise.derive(seed, noise.Stream.RECONSTRUCT), self.device)
        with self.evaluating(), seeded, checks.parameters_hold(fix=lambda: self.fix_of_rows(rows)):
            return self.likelihood(self.encoder(rows).sample(), **context).mean

    def _refuse_untaken(self, context: Mapping[str, Tensor]) -> None:
        """Refuse what goes with the rows under a name that the likelihood's forward does not have."""
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
        # Where encoder and likelihood standardise in float64 before anything else, rows need not be rounded.
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
        # A copy is another VAE: under the same name the two would share parameters in Pyro's store.
        super().__setstate__(state)
        self.name = _unique_name()

    @staticmethod
    def _check_widths(prior: nn.Module, likelihood: nn.Module, encoder: nn.Module) -> None:
        """Where the parts say how wide they are, they have to agree; what doesn't say is found by running."""
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
    """Run a block that moves tensors; refuse a device that this machine and its torch do not have."""
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
    """The names of families that are built from one argument: the others have defaults."""
    return tuple(
        name
        for name, family in registry.items()
        if sum(p.default is p.empty for p in inspect.signature(family).parameters.values()) == 1
    )


def _unique_name() -> str:
    """A name for one VAE in Pyro's global store, which knows parameters by their names alone."""
    return f"vae-{uuid.uuid4().hex}"


def _owners(*functions: Callable[..., Any]) -> list[nn.Module]:
    """The torch modules that functions are, or are bound methods of, each once."""
    plain = (_unwrapped(function) for function in functions)
    found = (getattr(function, "__self__", function) for function in plain)
    return list({id(owner): owner for owner in found if isinstance(owner, nn.Module)}.values())


def plain_attributes(module: nn.Module) -> dict[str, bool | int | float | str]:
    """What Python knows of a module by value."""
    return {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside ``functools.partial`` and decorators that follow ``functools.wraps``."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    return function


def _referred(function: Callable[..., Any]) -> list[nn.Module]:
    """The torch modules that a plain function's own code names: closed over, or global."""
    function = _unwrapped(function)
    if not inspect.isfunction(function):
        return []
    variables = inspect.getclosurevars(function)
    found = [*variables.nonlocals.values(), *variables.globals.values()]
    return [value for value in found if isinstance(value, nn.Module)]


def _refuse_homonyms(owners: nn.ModuleList) -> None:
    """Pyro knows a PyroParam by its name alone: of two under one name, the first would replace the second."""
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
    """Autoguides keep a posterior for the rows they first saw; a pair's guide must serve any batch of rows."""
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
