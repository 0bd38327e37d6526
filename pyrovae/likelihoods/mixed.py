"""Rows whose columns have different families, and real numbers that were recorded to a resolution: rows of tables.

``VAE.for_table`` builds them from a frame. They have a registry of their own for two reasons. ``Mixed`` needs a list of its
columns, and the others work on the whole numbers that a table's ``resolution`` defines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.entries import on_support
from pyrovae.likelihoods.base import REGISTRY, Likelihood
from pyrovae.likelihoods.real import LocationScale
from pyrovae.networks import Standardize
from pyrovae.refusals import bad_value
from pyrovae.registry import Registry

#: The likelihoods of tables by name.
TABLES: Registry[Likelihood] = Registry()


@TABLES.register("rounded_gaussian")
class RoundedGaussian(LocationScale):
    """P(k_d | z) = Φ((k_d + ½ − μ_d(z))/σ_d) − Φ((k_d − ½ − μ_d(z))/σ_d) for whole numbers: a mass.

    k counts steps of the resolution to which a real number was recorded. ``network``, ``scale`` and ``standardize`` are as in
    ``Gaussian``, in steps.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> RoundedGaussian(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    off_support = "It takes whole numbers: divide by the resolution and round."
    family = "RoundedNormal"
    in_double = True
    is_mass = True

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        log = self.standardizes == "log x"
        return distributions.RoundedNormal(*self.loc_and_scale(outputs), log=log)


@TABLES.register("censored_gaussian")
class CensoredGaussian(RoundedGaussian):
    """P(0 | z) = Φ((½ − μ_d(z))/σ_d(z)), else as ``RoundedGaussian``: a mass of whole numbers 0, 1, ….

    All that lies below ½ is recorded as 0. ``network``, ``scale`` and ``standardize`` are as in ``RoundedGaussian``.

    Tobin (1958).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> CensoredGaussian(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "counts"
    off_support = (
        'It takes whole numbers from 0 on: use "gaussian" with a resolution if negative numbers occur.'
    )

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return distributions.RoundedNormal(*self.loc_and_scale(outputs), censored=True)


@TABLES.register("rounded_log_normal")
class RoundedLogNormal(RoundedGaussian):
    """P(k_d | z), the mass of k_d − ½ < y < k_d + ½ for log y ~ N(μ_d(z), σ_d²), k_d = 0, 1, …: a mass.

    ``network``, ``scale`` and ``standardize`` are as in ``RoundedGaussian``, but refer to log y.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> RoundedLogNormal(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "counts"
    off_support = CensoredGaussian.off_support
    standardizes = "log x"

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        return super().marginal_parts(x.clamp(min=0.5).log())


class _Outputs(nn.Identity):
    """Stands for the decoder in the family of one group of columns, which gets its share of the outputs."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features


def family_of(name: str) -> type[Likelihood]:
    """Return the class of a family by its name in ``TABLES`` or ``REGISTRY``."""
    return TABLES[name] if name in TABLES else REGISTRY[name]


@TABLES.register("mixed")
class Mixed(Likelihood):
    """P(x | z) = Π_d P_d(x_d | z), where every group of columns has its own family.

    Args:
        network: returns the outputs of the first group, as its family takes them, then those of the second, and so on.
        groups: a dict for every group. "family" is a name in ``likelihoods.REGISTRY`` or ``TABLES``, "options" a dict of
            the family's options, and "columns" the numbers of the columns. "loc" and "scale" hold one number a column. They
            are the unit of x for families with a location and a scale. For others, they are that of the first output, and
            may be left out. "bounds" may hold a pair for every column: the least and the largest first output that the
            decoder can return, or None. A scale from the decoder is then at most their difference. Without bounds, a
            decoder returns means and scales far beyond the training rows where z is.

    Raises:
        ValueError: the network's output width is not ``Mixed.width(groups)``; a column is in no group or in two.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> groups = [
        ...     {"family": "bernoulli", "options": {}, "columns": [0, 2]},
        ...     {"family": "categorical", "options": {"num_categories": 3}, "columns": [1]},
        ... ]
        >>> fn = Mixed(MLP(2, (8,), Mixed.width(groups)), groups)(torch.zeros(4, 2))
        >>> fn.batch_shape, fn.event_shape
        (torch.Size([4]), torch.Size([3]))
    """

    family = "ByColumn"
    order: Tensor
    inverse: Tensor

    def __init__(self, network: nn.Module, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(network)
        columns = [column for group in groups for column in group["columns"]]
        if sorted(columns) != list(range(len(columns))) or not columns:
            raise bad_value(
                "groups",
                "every column from 0 on in exactly one group",
                repr(columns),
                "Number the columns from 0 and list each once.",
            )
        self.widths = [self.width([group]) for group in groups]
        found = getattr(network, "out_features", None)
        if isinstance(found, int) and found != sum(self.widths):
            raise bad_value(
                "network",
                f"{sum(self.widths)} outputs for these groups",
                str(found),
                "Give it Mixed.width(groups) outputs.",
            )
        self.columns = [list(group["columns"]) for group in groups]
        self.parts = nn.ModuleList([part_of(group) for group in groups])
        bounds = [group.get("bounds", ()) for group in groups]
        self.bounded = [any(end is not None for pair in pairs for end in pair) for pairs in bounds]
        # Families that standardise convert themselves.
        self.converted = ["loc" in group and not family_of(group["family"]).standardizes for group in groups]
        for number, group in enumerate(groups):
            held = dict[str, Sequence[float]]()
            if self.converted[number]:
                held |= {"loc": group["loc"], "scale": group["scale"]}
            if self.bounded[number]:
                low, high = zip(*bounds[number], strict=True)
                held["low"] = [-math.inf if end is None else end for end in low]
                held["high"] = [math.inf if end is None else end for end in high]
            for name, each in held.items():
                numbers = torch.tensor(each, dtype=torch.float64)
                self.register_buffer(f"{name}_{number}", numbers, persistent=False)
        self.register_buffer("order", torch.tensor(columns))
        self.register_buffer("inverse", torch.tensor(columns).argsort())

    @classmethod
    def width(cls, groups: Sequence[Mapping[str, Any]]) -> int:
        """Return how many decoder outputs groups of columns need."""
        return sum(
            family_of(group["family"]).outputs_per_dimension(**group["options"]) * len(group["columns"])
            for group in groups
        )

    def each(self) -> list[tuple[Any, list[int]]]:
        """Return the family of every group, and its columns."""
        return list(zip(self.parts, self.columns, strict=True))

    def distribution(self, outputs: Tensor) -> distributions.ByColumn:
        shares = [
            self._converted(group, share) for group, share in enumerate(outputs.split(self.widths, dim=-1))
        ]
        fns = [part.computed(share) for (part, _), share in zip(self.each(), shares, strict=True)]
        return distributions.ByColumn(fns, self.columns, self.order, self.inverse)

    def _converted(self, group: int, share: Tensor) -> Tensor:
        """Return the outputs of a group within its bounds, and the first kind in the family's units."""
        if not (self.bounded[group] or self.converted[group]):
            return share
        first, *more = share.split(len(self.columns[group]), dim=-1)
        part = self.parts[group]
        if self.bounded[group]:
            low, high = self._held(group, share, "low", "high")
            first = first.clamp(low, high)
            if isinstance(part, LocationScale) and part.scale == "decoder":
                more[0] = torch.minimum(more[0], (high - low).log())
        if self.converted[group]:
            loc, scale = self._held(group, share, "loc", "scale")
            first = loc + scale * first
        return torch.cat([first, *more], dim=-1)

    def _held(self, group: int, like: Tensor, *names: str) -> list[Tensor]:
        """Return numbers of a group, each of shape (columns,), in the dtype and on the device of a tensor."""
        return [getattr(self, f"{name}_{group}").to(like) for name in names]

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        found = list[Tensor]()
        for group, (part, columns) in enumerate(self.each()):
            first, *more = part.marginal_outputs(x[:, columns])
            loc, scale = self._held(group, first, "loc", "scale") if self.converted[group] else (0.0, 1.0)
            first = (first - loc) / scale
            if self.bounded[group]:
                # Families start off extreme means. The bounds may be more extreme, and outputs beyond have no gradient.
                low, high = self._held(group, first, "low", "high")
                links = [part.link(float(mean)) for mean in x[:, columns].mean(dim=0)]
                if None not in links:
                    means = (torch.tensor(links).to(first) - loc) / scale
                    first = torch.where((first > low) & (first < high), first, means)
            found += [first, *more]
        return found

    def check_rows(self, x: Tensor, names: Sequence[Any] | None = None) -> None:
        for part, columns in self.each():
            if part.inside is not None:
                on_support("x", x, columns, part.inside, type(part).__name__, part.off_support, names)

    def _check_support(self, x: Tensor, bias: Tensor | None) -> None:
        self.check_rows(x)


def part_of(group: Mapping[str, Any]) -> Likelihood:
    """Return the family of one group of columns, with its location and scale."""
    family, options, width = family_of(group["family"]), dict(group["options"]), len(group["columns"])
    if "loc" in group and family.standardizes:
        scaling = Standardize(width, log=family.standardizes == "log x")
        scaling.loc = torch.tensor(group["loc"], dtype=torch.float64)
        scaling.scale = torch.tensor(group["scale"], dtype=torch.float64)
        scaling.learned.fill_(True)
        options["standardize"] = scaling
    return family(_Outputs(width * family.outputs_per_dimension(**group["options"])), **options)
