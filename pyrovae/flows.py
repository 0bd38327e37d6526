"""Normalizing flows: zuko's transformations as a Pyro distribution.

zuko is installed by the extra ``pyrovae[flows]`` and is imported by the first flow that is built.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.refusals import refusal


def zuko() -> Any:
    """Return the package zuko.

    Raises:
        ImportError: it is not installed.
    """
    validates = torch.distributions.Distribution._validate_args
    try:
        import zuko
        import zuko.flows
    except ImportError as error:
        raise ImportError(
            refusal(
                "zuko",
                "the package of normalizing flows",
                "none installed",
                "Install it: pip install 'pyrovae[flows]'.",
            )
        ) from error
    finally:
        # zuko 1.6 switches off the checks of torch's distributions in the whole process.
        torch.distributions.Distribution.set_default_validate_args(validates)
    return zuko


class NormalizingFlow(dist.TorchDistribution):
    """z = f(ε), ε ~ base: log P(z) = log base(ε) − log |det ∂f/∂ε|, over real vectors.

    For a z that this object drew, log P uses the ε of the draw and is exact without an inverse.
    For any other z, it uses ε = f⁻¹(z). Rezende and Mohamed (2015).

    Args:
        base: distribution of ε, event shape (dim,).
        transform: f, one of zuko's transformations of real vectors or the inverse of one; its context
            has the batch shape of ``base``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: dist.TorchDistribution, transform: Any) -> None:
        self.base, self.transform = base, transform
        self._drawn: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(base.batch_shape, base.event_shape)

    def expand(self, batch_shape: Any, _instance: None = None) -> NormalizingFlow:
        """Return the distribution over a larger batch; the context of ``transform`` is broadcast."""
        return NormalizingFlow(self.base.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return z, shape (*sample_shape, *batch_shape, dim)."""
        noise = self.base.rsample(sample_shape)
        z, log_det = self.transform.call_and_ladj(noise)
        self._drawn = (z, self.base.log_prob(noise) - log_det, torch.is_grad_enabled())
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(z), shape (..., *batch_shape), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None:
            z, log_prob, with_graph = self._drawn
            # A draw without gradients has no graph, so compute log P again.
            if value is z and with_graph == torch.is_grad_enabled():
                return log_prob
        noise, log_det = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(noise) + log_det
