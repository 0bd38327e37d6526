"""Base classes of the likelihoods: each turns decoder outputs into a distribution over one row of x."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import arguments, supports
from pyrovae.distributions import InDouble
from pyrovae.entries import all_dense, elementwise, on_support
from pyrovae.networks import output_width
from pyrovae.refusals import Refused, bad_value, place, refusal
from pyrovae.registry import Registry
from pyrovae.rows import completed, read_in_double, restored

#: Every likelihood by its name: the class name in snake case.
REGISTRY: Registry[Likelihood] = Registry()

SCALES = ("shared", "per_dimension", "decoder")


class Likelihood(nn.Module, ABC):
    """Base of every family: runs the decoder on flattened batch dims and calls ``distribution``.

    The network returns ``outputs_per_dimension`` numbers for every entry of x. Its last dim holds all outputs
    of the first kind, then all of the second, and so on.
    """

    #: Whether the likelihood learns a scale for every dimension of x: fitting then rejects constant columns.
    learns_scale_per_column = False
    #: Whether every row has an offset, such as a count's log-exposure. It is added to the first kind of outputs.
    offset = False
    #: The quantity that a ``networks.Standardize`` has to standardise: "x", "log x", or None.
    standardizes: ClassVar[str | None] = None
    #: What x must be: any "numbers", "positive" or "bounded" ones (0 or more up to a bound), "counts" from 0 on, or "levels".
    takes: ClassVar[str] = "numbers"
    #: How many kinds of outputs the network has.
    num_kinds = 1
    #: Whether log-probabilities are computed in float64 whatever the decoder's dtype: see ``InDouble``.
    in_double: ClassVar[bool] = False
    #: The class name of the distribution, if it differs from the family's own.
    family: ClassVar[str] = ""
    #: The advice in the error for values off the support.
    off_support: ClassVar[str] = "Choose a likelihood whose support holds these values."
    #: The set that values have to lie in, if the support includes an edge with density 0 or +∞.
    inside: ClassVar[Any] = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = arguments.module("network", network)

    def forward(self, z: Tensor, offset: Tensor | None = None) -> dist.TorchDistribution:
        """P(x | z) for z of shape (..., latent_dim) and offsets of shape (rows,). Rows are z's last batch dim."""
        if (offset is not None) is not self.offset:
            raise _wrong_offset(self, offset)
        batch_shape = z.shape[:-1]
        outputs = self.network(z.reshape(-1, z.shape[-1]))  # (batch, *row)
        outputs = outputs.reshape(*batch_shape, *outputs.shape[1:])
        if offset is not None:
            first, *more = outputs.chunk(self.num_kinds, dim=-1)
            first = first + offset.view(-1, *[1] * (outputs.dim() - len(batch_shape)))
            outputs = torch.cat([first, *more], dim=-1) if more else first
        fn = self.computed(outputs)
        return fn.to_event(len(fn.batch_shape) - len(batch_shape))

    def computed(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return ``distribution(outputs)``, computed in float64 if the family needs it."""
        if self.in_double:
            return InDouble(self.distribution(outputs.double()), outputs.dtype)
        return self.distribution(outputs)

    @classmethod
    def outputs_per_dimension(cls, **options: Any) -> int:
        """How many decoder outputs one dimension of x needs, given the family's own options."""
        return 1

    @abstractmethod
    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the distribution of x for decoder outputs (..., *row), one parameter for every entry of x."""

    def link(self, location: float) -> float | None:
        """Return the first output at which the location, for most families the mean, is this number of the support.

        It is ±∞ at an end of the support, and None if the family does not say.
        """
        return None

    @abstractmethod
    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        """Return the decoder outputs that fit the columns' marginals, by the method of moments.

        ``x`` has shape (rows, ...) and dtype float64. The list holds one tensor for each kind of output,
        of the shape of a row. The fit assumes that z carries no information about x.
        """

    def start_from(self, x: Any) -> None:
        """Set the decoder's last bias so that training starts at the marginals of the rows of ``x``.

        Args:
            x: rows on dim 0. Missing cells, NaN, None or NA, are left out. If the family takes an offset,
                pass {"x": rows, "offset": offsets}.

        Raises:
            ValueError: sparse rows would take over 2 GB; values are off the family's support; a column has no observed
                cell.
            ValueError: the last layer has no bias as wide as its outputs; the family takes an offset and x has none.
        """
        batch, source = read_in_double(x, missing=True)
        rows = restored(all_dense(batch["x"], "start_from"), source.observed)
        self._check_support(rows, _last_bias(self.network))
        rows = completed(rows, source.observed)
        if not self.offset:
            kinds = self.marginal_outputs(rows)
        elif "offset" not in batch:
            raise _wrong_offset(self, None)
        else:  # fit as if every row had the mean exposure
            exposure = batch["offset"].double().exp().view(-1, *[1] * (rows.dim() - 1))
            kinds = self.marginal_outputs(rows * (exposure.mean() / exposure))
            kinds[0] = kinds[0] - exposure.mean().log()
        self._start(torch.cat([kind.flatten() for kind in kinds]))

    def _start(self, outputs: Tensor) -> None:
        """Set the decoder's last bias; raise ``ValueError`` unless it is as wide as ``outputs``."""
        bias = _last_bias(self.network)
        if bias is None or len(bias) != len(outputs):
            raise bad_value(
                "network",
                f"a last layer with a bias of {len(outputs)} outputs, to start from the data",
                "none" if bias is None else f"one of {len(bias)}",
                "End the network in nn.Linear.",
            )
        with torch.no_grad():
            bias.copy_(outputs)

    def check_rows(self, x: Tensor, names: Sequence[Any] | None = None) -> None:
        """Raise ``ValueError`` if rows, of any shape, hold values with density 0 or +∞ under every parameter.

        ``names`` are those of columns, for the message.
        """
        if self.inside is not None:
            flat = x.reshape(len(x), -1)
            columns = list(range(flat.shape[1]))
            on_support("x", flat, columns, self.inside, type(self).__name__, self.off_support, names)

    def _check_support(self, x: Tensor, bias: Tensor | None) -> None:
        """Raise ``ValueError`` if rows are off the support. Does nothing if the bias does not fit the row's shape."""
        *sides, width = x.shape[1:] or (1,)
        kinds = self.outputs_per_dimension(**vars(self).get("arguments", {}))
        if bias is None or len(bias) != math.prod(sides) * kinds * width:
            return
        with torch.no_grad():
            fn = self.distribution(bias.new_zeros(1, *sides, kinds * width))
        try:
            support = elementwise(fn.support)
        except NotImplementedError:  # a custom family without a support
            return
        if support is not None:
            flat = x.reshape(len(x), -1)
            on_support("x", flat, list(range(flat.shape[1])), support, type(self).__name__, self.off_support)


def off_support(family: str) -> str:
    """Return the advice for values off a distribution's support, by the class name of it or of its likelihood.

    Example:
        >>> off_support("Poisson")
        'Poisson takes counts 0, 1, 2, …; use "gaussian" for real values.'
    """
    named = (cls.off_support for cls in REGISTRY.values() if family in (cls.__name__, cls.family))
    return next(named, Likelihood.off_support)


class Inseparable(Refused):
    """The error for missing cells under a distribution that is no product over the columns of x."""

    #: The distribution's class name.
    family = ""


def inseparable(family: str, observed: Tensor) -> Inseparable:
    """Return the error for missing cells under a distribution that is joint over columns, by its class name."""
    missing = torch.nonzero(~observed)
    error = Inseparable(
        refusal(
            "x",
            f"rows without missing cells, because {family} is joint over the columns of x",
            f"{len(missing)} missing cells"
            + (f", first at {place(missing[0].tolist())}" if len(missing) else ""),
            "Use a likelihood with independent columns given z, or drop or impute those rows.",
        )
    )
    error.family = family
    return error


def of_observed(
    fn: dist.TorchDistribution, x: Tensor, observed: Tensor
) -> tuple[dist.TorchDistribution, Tensor]:
    """Return P(x_obs | z) = Π_{d observed} P(x_d | z), and rows with a value of the support in missing cells.

    ``fn`` is P(x | z), independent over the columns of x. ``observed`` has the shape of ``x``, True where a cell is
    observed. The values in missing cells add exactly 0 to the log-probability and to its gradient.

    Raises:
        ValueError: ``fn`` is joint over columns, such as a multinomial or a multivariate normal.
    """
    base = fn
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if base.event_dim or not callable(
        getattr(base, "mask", None)
    ):  # Pyro's MaskedMixture has a tensor of that name
        raise inseparable(type(base).__name__, observed)
    masked = base.mask(observed).to_event(fn.event_dim)
    some = supports.some_value(supports.support(base))
    return masked, torch.where(observed, x, some.to(x) if isinstance(some, Tensor) else some)


def _wrong_offset(likelihood: Likelihood, offset: Tensor | None) -> Refused:
    name = type(likelihood).__name__
    if likelihood.offset:
        return bad_value(
            "x",
            f"an offset for every row, because this {name} has offset=True",
            "none",
            'Pass {"x": rows, "offset": log_exposure}.',
        )
    return bad_value(
        "offset",
        f"none: this {name} takes no offset",
        f"{0 if offset is None else offset.numel()} of them",
        "Build a count family with offset=True, or leave the offset out.",
    )


def _last_bias(network: nn.Module) -> Tensor | None:
    """Return the bias of the last layer if that is linear, else None: the pixels of a convolution share a bias."""
    layers = [layer for layer in network.modules() if list(layer.parameters(recurse=False))]
    return layers[-1].bias if layers and isinstance(layers[-1], nn.Linear) else None


def as_row(values: Tensor, like: Tensor) -> Tensor:
    """Return one number for every entry of a row, in the shape of the last dims of ``like`` that hold as many."""
    dims = next((k for k in range(1, like.dim() + 1) if like.shape[-k:].numel() == values.numel()), None)
    return values if values.dim() == 0 or dims is None else values.view(like.shape[-dims:])


class Spread(Likelihood):
    """Base of families with a second positive parameter, a scale or a concentration.

    The parameter is a number, ``"shared"`` (one is learned), ``"per_dimension"`` (one is learned for each
    entry of x) or ``"decoder"`` (the network returns its logarithm). Subclasses set ``spread_name``, the
    family's name for it.
    """

    #: The family's name for the parameter.
    spread_name: ClassVar[str]
    #: How many kinds of outputs follow the first and the spread.
    more_outputs: ClassVar[int] = 0
    #: Training does not start from a smaller spread.
    least_spread: ClassVar[float] = 1e-3
    #: Whether the likelihood is a mass. It is at most 1, so it has a maximum on constant columns, too.
    is_mass: ClassVar[bool] = False

    def __init__(self, network: nn.Module, spread: float | str) -> None:
        super().__init__(network)
        name = self.spread_name
        if not isinstance(spread, str):
            spread = arguments.positive(name, spread)
        elif spread not in SCALES:
            raise bad_value(
                name,
                "a number > 0, 'shared', 'per_dimension' or 'decoder'",
                repr(spread),
                "Pass one of these.",
            )
        kinds = self.outputs_per_dimension(**{name: spread})
        self.num_kinds = kinds
        width = output_width(network)
        if width is not None and width % kinds:
            raise bad_value(
                "network",
                f"an output width that is a multiple of {kinds}: all outputs of the first kind, then all of the next",
                str(width),
                f"Give it {kinds} outputs for every entry of x.",
            )
        if spread == "shared":
            self.register_parameter(f"log_{name}", nn.Parameter(torch.zeros(())))
        elif spread == "per_dimension":
            if width is None:
                raise bad_value(
                    "network",
                    f'a network that names its output width, for {name}="per_dimension"',
                    f"a {type(network).__name__} without out_features",
                    "Set network.out_features to the width of a row of x.",
                )
            self.register_parameter(f"log_{name}", nn.Parameter(torch.zeros(width // kinds)))
        setattr(self, name, spread)
        self.learns_scale_per_column = spread in ("per_dimension", "decoder") and not self.is_mass

    @classmethod
    def outputs_per_dimension(cls, **options: Any) -> int:
        return 1 + (options.get(cls.spread_name) == "decoder") + cls.more_outputs

    def parts(self, outputs: Tensor) -> list[Tensor]:
        """Return the first parameter, the logarithm of the spread and the remaining outputs; each fits (..., *row)."""
        spread = getattr(self, self.spread_name)
        if spread == "decoder":
            return list(outputs.chunk(2 + self.more_outputs, dim=-1))
        # Not expanded, so that exp runs on as few numbers as possible.
        if isinstance(spread, str):
            log_spread = getattr(self, f"log_{self.spread_name}").to(outputs)
        else:
            log_spread = outputs.new_tensor(spread).log()
        first, *more = outputs.chunk(1 + self.more_outputs, dim=-1)
        return [first, as_row(log_spread, first), *more]

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        first, spread, *more = self.marginal_parts(x)
        option, log_spread = getattr(self, self.spread_name), spread.clamp(min=self.least_spread).log()
        if option == "decoder":
            return [first, log_spread, *more]
        if isinstance(option, str):
            learned = getattr(self, f"log_{self.spread_name}")
            with torch.no_grad():
                learned.copy_(log_spread.mean() if learned.dim() == 0 else log_spread.flatten())
        return [first, *more]

    @abstractmethod
    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        """Return the first parameter, the spread and the other parameters fitted to each column, in a row's shape."""

    def extra_repr(self) -> str:
        return f"{self.spread_name}={getattr(self, self.spread_name)!r}"


def logit(share: float) -> float:
    """Return log(p / (1 − p)), ±∞ at 0 and 1.

    Example:
        >>> logit(0.5), logit(1.0)
        (0.0, inf)
    """
    return math.inf if share == 1 else log(share) - math.log1p(-share)


def log(number: float) -> float:
    """Return a logarithm, −∞ of 0."""
    return math.log(number) if number > 0 else -math.inf


class Concentrated(Spread):
    """Base of families with a mean and a concentration: the larger, the smaller the variance. Uses float64."""

    spread_name = "concentration"
    in_double = True

    def __init__(self, network: nn.Module, concentration: float | str = "shared") -> None:
        super().__init__(network, concentration)
