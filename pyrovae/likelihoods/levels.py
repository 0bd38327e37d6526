"""Probability masses of few values: zeros and ones, labels, ordered levels, pixels."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import arguments, distributions
from pyrovae.likelihoods.base import REGISTRY, Likelihood, Spread
from pyrovae.networks import output_width
from pyrovae.refusals import bad_value

_INSIDE = 1e-3  # training starts from marginal probabilities at least this far inside (0, 1)


@REGISTRY.register("bernoulli")
class Bernoulli(Likelihood):
    """P(x | z) = Π_d Bernoulli(x_d; sigmoid(logit_d(z))) for x of zeros and ones: a mass.

    ``network`` maps (batch, latent_dim) to logits of the shape of the rows, (batch, ...).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> p = Bernoulli(MLP(2, (8,), 5))(torch.zeros(3, 7, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([3, 7]), torch.Size([5]))
    """

    takes = "levels"
    off_support = (
        "Binarize grey levels, x > 0.5, or score them as a density: ContinuousBernoulli, "
        'likelihood="continuous_bernoulli"; or "beta" without exact 0 and 1.'
    )

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=outputs)

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        return [torch.logit(x.mean(dim=0).clamp(_INSIDE, 1 - _INSIDE))]


@REGISTRY.register("categorical")
class Categorical(Likelihood):
    """P(x_d = k | z) = softmax_k(logit_dk(z)) for labels 0 … num_categories − 1 without an order: a mass.

    Args:
        network: returns the logits of label 0 for all entries of x, then of label 1, and so on.
        num_categories: how many labels there are.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Categorical(MLP(2, (8,), 4 * 5), num_categories=4)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "levels"
    off_support = 'Number the levels 0, 1, 2, … and say how many there are; use "gaussian" for real values.'
    family = "Levels"

    def __init__(self, network: nn.Module, num_categories: int) -> None:
        super().__init__(network)
        self.num_categories = arguments.integer("num_categories", num_categories, minimum=2)

    @classmethod
    def outputs_per_dimension(cls, **options: Any) -> int:
        return options.get("num_categories", 2)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return distributions.Levels(logits=torch.stack(outputs.chunk(self.num_categories, dim=-1), dim=-1))

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        counts = [(x == k).double().sum(dim=0) for k in range(self.num_categories)]
        return [((count + 1) / (len(x) + self.num_categories)).log() for count in counts]

    def extra_repr(self) -> str:
        return f"num_categories={self.num_categories}"


@REGISTRY.register("ordinal")
class Ordinal(Likelihood):
    """P(x_d ≤ k | z) = σ(c_dk − η_d(z)) for ordered levels 0 … num_levels − 1: a mass, the cumulative logit model.

    Args:
        network: returns η and has ``out_features``.
        num_levels: how many levels there are. The ordered cut-points c are learned for every entry of x.

    McCullagh (1980).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Ordinal(MLP(2, (8,), 5), num_levels=4)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "levels"
    off_support = Categorical.off_support
    family = "Levels"

    def __init__(self, network: nn.Module, num_levels: int) -> None:
        super().__init__(network)
        self.num_levels = arguments.integer("num_levels", num_levels, minimum=2)
        width = output_width(network)
        if width is None:
            raise bad_value(
                "network",
                "a network that names its output width, because every column has its own cut-points",
                f"a {type(network).__name__} without out_features",
                "Set network.out_features to the width of a row of x.",
            )
        # Levels are equally likely at η = 0. The steps between cut-points are stored as logarithms.
        cuts = torch.logit(torch.arange(1, num_levels) / num_levels)
        self.first_cut = nn.Parameter(cuts[:1].expand(width).clone())
        self.log_steps = nn.Parameter(cuts.diff().log().expand(width, -1).clone())

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        steps = torch.cat([self.first_cut[:, None], self.log_steps.exp()], dim=-1)
        cuts = steps.cumsum(dim=-1).to(outputs)  # (width, levels − 1)
        row = next(k for k in range(1, outputs.dim() + 1) if outputs.shape[-k:].numel() == len(cuts))
        cuts = cuts.view(*outputs.shape[-row:], -1)  # (*row, levels − 1)
        above = cuts - outputs[..., None]
        inner = distributions.log_sigmoid_difference(above[..., 1:], above[..., :-1])
        first, last = nn.functional.logsigmoid(above[..., :1]), nn.functional.logsigmoid(-above[..., -1:])
        return distributions.Levels(logits=torch.cat([first, inner, last], dim=-1))

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        below = torch.stack([(x <= k).double().mean(dim=0) for k in range(self.num_levels - 1)], dim=-1)
        # Every level gets a little mass, so that no two cut-points coincide.
        spread = torch.arange(1, self.num_levels, dtype=x.dtype) / self.num_levels
        cuts = torch.logit((0.99 * below + 0.01 * spread).clamp(1e-4, 1 - 1e-4))
        with torch.no_grad():
            self.first_cut.copy_(cuts[..., 0].flatten())
            self.log_steps.copy_(cuts.diff(dim=-1).clamp(min=1e-4).log().flatten(0, -2))
        return [torch.zeros_like(cuts[..., 0])]

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}"


@REGISTRY.register("discretized_logistic")
class DiscretizedLogistic(Spread):
    """P(x_d = k | z) = σ((k + ½ − μ_d)/s_d) − σ((k − ½ − μ_d)/s_d) for levels such as 0–255: a mass.

    Args:
        network: returns the location in units of half the range, with 0 in its middle:
            μ = (levels − 1)(1 + output)/2. With ``scale="decoder"`` it then returns log s.
        levels: how many levels there are.
        scale: s, in levels: a number, ``"shared"``, ``"per_dimension"`` or ``"decoder"``.

    The lowest and the highest level also get the mass beyond them. Salimans, Karpathy, Chen and Kingma (2017).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> DiscretizedLogistic(MLP(2, (8,), 5), levels=256)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "bounded"
    off_support = (
        "It takes whole numbers from 0 to levels − 1: multiply shares by levels − 1, or raise levels."
    )
    spread_name = "scale"
    is_mass = True

    def __init__(self, network: nn.Module, levels: int, scale: float | str = "shared") -> None:
        super().__init__(network, scale)
        self.levels = arguments.integer("levels", levels, minimum=2)

    def link(self, location: float) -> float:
        share = location / (self.levels - 1)
        # The outermost levels get the mass beyond them, so the location may lie there, too.
        return -math.inf if share == 0 else math.inf if share == 1 else 2 * share - 1

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        middle, log_scale = self.parts(outputs)
        return distributions.DiscretizedLogistic(
            (self.levels - 1) / 2 * (1 + middle), log_scale.exp(), self.levels
        )

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        # the standard deviation of a logistic distribution is π/√3 times its scale
        return [2 * x.mean(dim=0) / (self.levels - 1) - 1, (x.std(dim=0) * 3**0.5 / torch.pi).clamp(min=0.1)]

    def extra_repr(self) -> str:
        return f"levels={self.levels}, {super().extra_repr()}"
