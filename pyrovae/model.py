"""Pairs: each is a Pyro model and a Pyro guide with their parameters. Training is in ``training``.

``LatentVariableModel`` holds any model and guide. ``VAE`` builds both from a prior, a likelihood and an encoder.
"""

from __future__ import annotations

import functools
import inspect
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn

from pyrovae import arguments, encoders, likelihoods, noise, priors
from pyrovae.entries import column_sizes, largest_entry
from pyrovae.likelihoods.base import of_observed
from pyrovae.likelihoods.mixed import Mixed
from pyrovae.networks import MLP, Features, Standardize, output_width, widths
from pyrovae.parameters import Parameters, owners_of, plain_attributes, unwrapped
from pyrovae.refusals import bad_type, bad_value, parameters_hold, place, shown
from pyrovae.rows import Source, as_tensor, read
from pyrovae.tables import Table
from pyrovae.turns import takes_turns

# Advise to standardise if column sizes differ by more than the factor 100, or the largest is not in (0.01, 10).
# Networks are initialised for inputs of size one.
_UNEVEN, _LARGE = 100.0, 10.0


@dataclass
class FitRecord:
    """What a fit leaves on its pair.

    Attributes:
        fingerprint: sha256 of the rows' hashes.
        rows: how many rows the fit used.
        seen: ``identity.row_hashes`` of the rows of this fit and of earlier ones, shape (rows, 2).
        names: the column names of each frame, by its name in the batch; see ``rows.Source``.
        spread: the columns' standard deviations, shape (columns,).
        history: the attributes of the fit's ``History``.
    """

    fingerprint: str
    rows: int
    seen: np.ndarray
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    spread: Tensor | None = None
    history: dict[str, Any] = field(default_factory=dict)


class LatentVariableModel(Parameters):
    """Holds any Pyro model P(x, z) and guide Q(z | x) as one torch module.

    Both are called with a batch of rows, ``model(x)`` and ``guide(x)``. Both declare a plate of size ``len(x)``
    around every latent.

    A model that takes the keyword ``observed`` gets rows with missing cells: NaN in arrays, None and NA in frames. In
    these cells, x is 0. ``observed`` is a boolean tensor of the shape of x, True where a cell is observed. Without
    missing cells, it is passed only if it has no default. The model must leave out missing cells, by ``.mask(observed)``
    on the distribution below ``.to_event`` or by ``obs_mask=observed``. Then log P(x) is log P of the observed cells. The
    guide gets the mask if it takes ``observed``, too.

    If model or guide is a torch module, or a method of one, the pair has the module's parameters. PyroModules are
    included. Parameters that ``pyro.param`` and ``pyro.module`` declare in plain functions are in the pair's own
    parameter store. The first run of the pair fills this store. Pyro's global store supplies no values and is not
    changed. If the global store holds a name that the pair declares, this run raises ``ValueError``. Pass that store as
    ``params``, or clear it.

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

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        plate: str | None = None,
        params: ParamStoreDict | dict[str, Any] | None = None,
    ) -> None:
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise bad_type(
                    name, "a callable with Pyro statements", repr(function), "Pass a function or module."
                )
        _refuse_autoguide(guide)
        if plate is not None and not (isinstance(plate, str) and plate):
            raise bad_type("plate", "the name of a plate", shown(plate), "Pass a string.")
        super().__init__(owners_of(model, guide), params)
        # Stored in __dict__, so that torch registers modules once, as owners.
        self.__dict__["model"] = model
        self.__dict__["guide"] = guide
        self.plate = plate
        self.fitted: FitRecord | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model into one file, for ``pyrovae.load``; see ``pyrovae.save``."""
        from pyrovae.saving import save

        save(self, path)

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
            code = getattr(unwrapped(function), "__code__", None)
            if code is not None:
                constants = [c for c in code.co_consts if isinstance(c, bool | int | float | str | tuple)]
                cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
                plain_cells = [c for c in cells if isinstance(c, bool | int | float | str)]
                found.append(f"{code.co_code.hex()} {code.co_names} {constants} {plain_cells}")
        return found

    @property
    def seen(self) -> np.ndarray | None:
        """The ``identity.row_hashes`` of the rows that the pair was fitted to, shape (rows, 2); None before a fit."""
        return None if self.fitted is None else self.fitted.seen

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The column names that the pair was fitted to, by the name of each frame in the batch; empty before a fit."""
        return {} if self.fitted is None else dict(self.fitted.names)

    def checked(
        self, x: Any, argument: str = "x", names: Mapping[str, tuple[str, ...]] | None = None
    ) -> tuple[dict[str, Tensor], Source]:
        """Return rows as a checked batch on the pair's device, and the ``Source`` of the rows.

        The batch is in the pair's dtype, or in float64 if the pair allows it. Columns must have the names that the
        pair was fitted to. Before a fit, they must have those in ``names``, if given.
        """
        double, spread = self._rounding()
        mask = _parameters(self.model).get("observed")
        batch, source = read(
            x,
            dtype=self.dtype,
            device=self.device,
            argument=argument,
            names=None if names is None and self.fitted is None else {**(names or {}), **self.names},
            double=double,
            spread=spread,
            missing=self.takes_missing,
        )
        if mask is not None and mask.default is mask.empty and "observed" not in batch:
            batch["observed"] = torch.ones_like(batch["x"], dtype=torch.bool)
        return batch, source

    @property
    def takes_missing(self) -> bool:
        """Whether rows may have missing cells: the model takes ``observed``."""
        return "observed" in _parameters(self.model)

    @property
    def labels(self) -> Sequence[Any] | None:
        """The labels of the columns that a table has, for messages; None if columns are numbered as in x."""
        return None

    def arranged(self, x: Any) -> Any:
        """Return rows with their columns in the model's order; see ``Table.arranged``. Rows of other models stay as they are."""
        return x

    def part(self, name: str) -> Callable[..., Any]:
        """Return the "model" or the "guide", to be called with a batch; a guide that takes no ``observed`` does not get it."""
        function: Callable[..., Any] = getattr(self, name)
        taken = _parameters(function)
        if "observed" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            return function
        return functools.partial(_without_observed, function)

    def _rounding(self) -> tuple[str, Tensor | None]:
        """Return the arguments ``double`` and ``spread`` of ``read``."""
        spread = None if self.fitted is None else self.fitted.spread
        return "lossy" if self.dtype is None else "never", spread  # an unknown dtype may be float64

    def fix_of_rows(self, x: Tensor, numbers: Tensor | None = None) -> str:
        """Return the advice for networks that overflow on rows of x, with the position of the largest entry.

        ``numbers`` are the row numbers to report, shape (rows,); the default counts from 0.
        """
        row, column, value = largest_entry(x)
        row = row if numbers is None else int(numbers[row])
        where = place([row, column], self.labels)
        largest = f"The largest entry is {value:g}, in {where}; in training lower lr or set clip_norm."
        return f"{self.fix_of_scales(x)} {largest}".lstrip()

    def fix_of_scales(self, x: Tensor) -> str:
        """Return the advice on the columns' scales; empty if these are near one or the pair standardises x."""
        smallest, largest = column_sizes(x)
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


class VAE(LatentVariableModel):
    """A variational autoencoder: P(x, z) = P_Φ(x | z) P_Ω(z), encoder Q_Ψ(z | x).

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014). ``vae.model`` and ``vae.guide`` are
    ordinary Pyro callables, which ``pyro.infer.SVI`` can also train.

    Args:
        prior: module whose forward() returns the distribution of z, event shape (latent_dim,).
        likelihood: module whose forward(z) returns the distribution of a row of x.
        encoder: module whose forward(x) returns a distribution of z for each row. If its forward takes ``observed``, it also
            gets the mask of observed cells; missing cells are 0 in x.

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
        Parameters.__init__(self)
        for name, part in (("prior", prior), ("likelihood", likelihood), ("encoder", encoder)):
            if not isinstance(part, nn.Module):
                raise bad_type(
                    name,
                    "a torch module whose forward returns a Pyro distribution",
                    repr(part),
                    f"Take one of pyrovae.{name}s or write one.",
                )
        if isinstance(prior, priors.VampPrior) and prior.encoder is not encoder:
            raise bad_value(
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
        self.plate, self.fitted = None, None
        #: The columns of the frames whose rows the VAE takes, if it was made by ``for_table``; else None.
        self.table: Table | None = None

    def checked(
        self, x: Any, argument: str = "x", names: Mapping[str, tuple[str, ...]] | None = None
    ) -> tuple[dict[str, Tensor], Source]:
        if self.table is not None:
            x = self.table.read(x, argument)
            if self.fitted is not None and not self.names:  # of a file from before numbers were names
                names = {"x": tuple(map(str, self.table.names))}
        return super().checked(x, argument, names)

    @property
    def labels(self) -> Sequence[Any] | None:
        return None if self.table is None else self.table.names

    def arranged(self, x: Any) -> Any:
        return x if self.table is None else self.table.arranged(x)

    def model(self, x: Tensor, observed: Tensor | None = None, **context: Tensor) -> None:
        """Run P(x_obs, z): rows of x, shape (batch, ...), observed at site "x"; latent site "z".

        ``observed`` is a boolean tensor of the shape of x, True where a cell is observed; None if no cell is missing.
        Values beside the rows, such as an offset, are passed to the likelihood.
        """
        self._declare()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            fn = self.likelihood(z, **context)
            if observed is not None:
                fn, x = of_observed(fn, x, observed)
            pyro.sample("x", fn, obs=x)

    def guide(self, x: Tensor, observed: Tensor | None = None, **context: Tensor) -> None:
        """Run Q(z | x_obs): latent site "z" for rows of x, shape (batch, ...). Values beside the rows are ignored."""
        self._declare()
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x, observed))

    def encode(self, x: Tensor, observed: Tensor | None = None) -> dist.TorchDistribution:
        """Return Q(z | x_obs) of checked rows. An encoder that takes no ``observed`` gets x with 0 in missing cells."""
        if observed is None or "observed" not in _parameters(self.encoder):
            found: dist.TorchDistribution = self.encoder(x)
            return found
        return self.encoder(x, observed=observed)

    def _declare(self) -> None:
        """Declare parameters as ``pyro.module(self.name, self)`` does, without its warning about frozen ones.

        Within ``own_parameters`` nothing reads them: they are the modules' own.
        """
        if self._scopes:
            return
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
        missing: bool = False,
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
                scale, the decoder returns those of standardised x, and they are transformed back. So log P(x) stays
                in x's own units. Such a family takes rows in float64 whatever the networks' dtype, because the mean
                is subtracted before any rounding.
            missing: whether the encoder sees which cells of a row are missing. Any VAE takes rows with missing cells,
                and its encoder sees the column's mean there, or 0 without ``standardize``. With ``missing=True`` it
                also sees the mask, and can find z better.
            likelihood_options: passed to the family. ``scale`` of a Gaussian is a number, ``"shared"``,
                ``"per_dimension"`` or ``"decoder"``.

        Example:
            >>> vae = VAE.mlp(64, latent_dim=2, likelihood="gaussian", scale="shared")
        """
        arguments.choice("likelihood", likelihood, tuple(likelihoods.REGISTRY))
        family = likelihoods.REGISTRY[likelihood]
        arguments.options(likelihood, family, likelihood_options, taken=("network", "standardize"))
        arguments.choice("prior", prior, _of_one_argument(priors.REGISTRY))
        arguments.choice("encoder", encoder, _of_one_argument(encoders.REGISTRY))
        arguments.integer("data_dim", data_dim)
        arguments.integer("latent_dim", latent_dim)
        hidden = widths("hidden_dims", hidden_dims)
        inputs = data_dim * (2 if arguments.boolean("missing", missing) else 1)
        outputs = family.outputs_per_dimension(**likelihood_options) * data_dim
        scaling = None
        if arguments.boolean("standardize", standardize):
            scaling = Standardize(data_dim, log=family.standardizes == "log x")
            if family.standardizes:
                likelihood_options["standardize"] = scaling
        return cls(
            prior=priors.REGISTRY[prior](latent_dim),
            likelihood=family(MLP(latent_dim, hidden[::-1], outputs, activation), **likelihood_options),
            encoder=encoders.REGISTRY[encoder](
                MLP(inputs, hidden, encoders.REGISTRY[encoder].outputs(latent_dim), activation),
                standardize=scaling,
                **({"missing": True} if missing else {}),
            ),
        )

    @classmethod
    @takes_turns
    def for_table(
        cls,
        df: Any,
        latent_dim: int,
        *,
        families: Mapping[Any, Any] | None = None,
        resolution: Mapping[Any, float] | None = None,
        hidden_dims: Sequence[int] = (200,),
        activation: str = "relu",
        prior: str = "standard_normal",
        encoder: str = "diagonal_normal",
    ) -> VAE:
        """Return a VAE of the rows of a pandas frame, whose columns each have their own family.

        P(x | z) = Π_d P_d(x_d | z). Strings, booleans and pandas categories get masses of their levels, ordered categories an
        ``Ordinal``. ``likelihoods.suggest`` chooses the families of numbers: counts for whole numbers, densities for others.
        "continuous_bernoulli" and "poisson" are never chosen, because P(x | z) cannot narrow. Whole numbers get the mass of an
        interval of width 1 if their smallest is not 0 or if "poisson" fits best. They also get it if their standard
        deviation or variance is below their mean. Decimal numbers with one value in over a tenth of the rows are
        counted in steps of 0.1, 0.01, …. An example is amounts with many zeros. A density would give this value no
        mass.

        Every function that takes rows then takes such a frame, with None, NaN or NA in missing cells. ``sample`` and
        ``reconstruct`` return frames. Levels, locations and scales come from ``df`` and never change, so ``df`` should
        hold the training rows alone. Networks compute in float64. ``vae.table.summary()`` lists the columns.

        A warning names the columns that are left out: constant ones, strings that all differ, and consecutive numbers.
        Other warnings name columns with a density that are exact affine functions of others, or that have one value in over
        a tenth of the rows. They also name text that looks like numbers or dates, and words or numbers that may stand for
        missing cells.

        Args:
            df: the training rows.
            latent_dim: entries of z.
            families: for some columns, a name in ``likelihoods.REGISTRY``, or a pair of a name and a dict of the family's
                options. None leaves the column out. A density has one spread a column. If the spread of positive numbers
                depends on other columns, ``{"sq": ("gamma", {"concentration": "decoder"})}`` learns it from z. Imputed
                means are then often closer, but intervals of tables of a few hundred rows become too narrow.
            resolution: for columns of real numbers the step to which they were recorded, such as {"age": 1}. The column is
                then scored as the mass of its interval, x ± step/2, under a Gaussian or a log-normal. If 0 is the smallest
                number, the Gaussian is censored at 0. If every column is a mass, log P(x) has no units and can be compared
                across families.
            hidden_dims: of both networks. The decoder's outputs also get a linear map of z.
            activation, prior, encoder: as in ``mlp``.

        Raises:
            TypeError: df is no frame; families or resolution are no dicts.
            ValueError: a column holds dates, mixed types, no observed cell, or values that its family cannot score. A
                number is no whole multiple of its resolution. The message names the column and the first row.

        Nazábal, Olmos, Ghahramani and Valera (2020) on VAEs of mixed columns.

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"age": [31, 40, 23], "job": ["nurse", "cook", "cook"], "dose": [0.7, None, 1.2]})
            >>> vae = VAE.for_table(df, latent_dim=1, resolution={"age": 1})
            >>> vae.sample(2, seed=0).columns.tolist()
            ['age', 'job', 'dose']
        """
        arguments.integer("latent_dim", latent_dim)
        arguments.choice("prior", prior, _of_one_argument(priors.REGISTRY))
        arguments.choice("encoder", encoder, _of_one_argument(encoders.REGISTRY))
        hidden = widths("hidden_dims", hidden_dims)
        table = Table.of(df, families, resolution)
        table.warn_left_out()
        table.warn_unbounded(df)
        table.warn_of_doubts(df)
        groups, features = table.groups(), Features(**table.features())
        Mixed(nn.Identity(), groups)  # refuses options before a network draws its weights
        outputs = Mixed.width(groups)
        likelihood = Mixed(MLP(latent_dim, hidden[::-1], outputs, activation, shortcut=bool(hidden)), groups)
        likelihood.start_from(table.encode(df))
        found = encoders.REGISTRY[encoder]
        network = MLP(features.out_features, hidden, found.outputs(latent_dim), activation)
        vae = cls(
            prior=priors.REGISTRY[prior](latent_dim),
            likelihood=likelihood,
            encoder=found(nn.Sequential(features, network), missing=True),
        )
        vae.table = table
        vae.double()
        for name in ("loc", "scale"):  # made in float32, which rounds them
            getattr(features, name).copy_(torch.tensor(table.features()[name], dtype=torch.float64))
        return vae

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0, **context: Tensor) -> Any:
        """Return rows drawn from P(x), shape (num_rows, ...): z from the prior, x from the likelihood.

        A VAE for a table returns a frame in the types of its training rows. Other arguments of the likelihood, such as offsets of shape (num_rows,), are passed by name.
        """
        arguments.integer("num_rows", num_rows)
        self.check_numbers()
        self._refuse_untaken(context)
        for name, value in context.items():
            context[name] = as_tensor(value, dtype=self.dtype, device=self.device, argument=name)
            if len(context[name]) != num_rows:
                raise bad_value(
                    name,
                    f"one for each of the {num_rows} rows",
                    f"{len(context[name])} of them",
                    "Pass as many.",
                )
        with self.evaluating(), noise.seeded(noise.derive(seed, noise.Stream.SAMPLE), self.device):
            drawn = self.likelihood(self.prior().sample((num_rows,)), **context).sample()
        return drawn if self.table is None else self.table.decode(drawn)

    @takes_turns
    def reconstruct(self, x: Any, seed: int = 0) -> Any:
        """Return the mean of P(x | z) for one draw z ~ Q(z | x) per row, in the shape of the likelihood's rows.

        A VAE for a table returns a frame in the types of its training rows. It holds the most probable level of columns
        with levels, and the median of columns with a resolution.
        """
        self.check_numbers()
        context, source = self.checked(x)
        rows, observed = context.pop("x"), context.pop("observed", None)
        self._refuse_untaken(context)
        seeded = noise.seeded(noise.derive(seed, noise.Stream.RECONSTRUCT), self.device)
        with self.evaluating(), seeded, parameters_hold(fix=lambda: self.fix_of_rows(rows)):
            fn = self.likelihood(self.encode(rows, observed).sample(), **context)
            if self.table is None:
                return fn.mean
            return self.table.decode(fn.base_dist.typical, source.index)

    def _refuse_untaken(self, context: Mapping[str, Tensor]) -> None:
        """Raise ``ValueError`` for a value beside the rows that is not an argument of the likelihood's forward."""
        parameters = inspect.signature(self.likelihood.forward).parameters
        taken = list(parameters)[1:]  # without z
        for name in context:
            if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise bad_value(
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
            raise bad_value(
                "likelihood",
                f"a network that takes {latent_dim} latent dimensions, as the prior has",
                str(decoder_takes),
                "Give both the same number.",
            )
        if not isinstance(encoder, encoders.Encoder):
            return
        width, outputs = output_width(encoder.network), encoder.outputs(latent_dim)
        if width is not None and width != outputs:
            raise bad_value(
                "encoder",
                f"a network with {outputs} outputs for {latent_dim} latent dimensions",
                str(width),
                f"Give it {type(encoder).__name__}.outputs({latent_dim}) outputs.",
            )


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function or of a module's forward, by name; empty if they cannot be read."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return {}


def _without_observed(
    function: Callable[..., Any], x: Tensor, observed: Tensor | None = None, **context: Any
) -> Any:
    return function(x, **context)


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
    raise bad_value(
        "guide",
        "a distribution of each row's latents given that row",
        f"{type(guide).__name__}, which {reason}",
        "Write a guide that encodes x, as in pyrovae.encoders.",
    )
