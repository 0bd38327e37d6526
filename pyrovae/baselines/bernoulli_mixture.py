"""A mixture of independent Bernoulli columns with exact log P(x)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyrovae import arguments
from pyrovae.baselines.base import register
from pyrovae.baselines.latent_class import LatentClass


@register("bernoulli_mixture")
class BernoulliMixture(LatentClass):
    """x ~ Σ_c π_c Π_d Bernoulli(x_d; p_cd), for columns of zeros and ones: ``LatentClass`` with two categories; exact.

    Args:
        num_components: how many components.
        pseudo_count: of ones and of zeros, in each component and column; 0 is maximum likelihood.
        num_starts, max_iter, seed: see ``LatentClass``.

    After ``fit``: ``weights`` π, shape (components,), largest first; ``probabilities`` p, shape (components, columns);
    ``history`` and ``converged`` as in ``LatentClass``.

    Raises:
        ValueError: x holds values other than 0 and 1.

    Bishop (2006), 9.3.3.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]])
        >>> BernoulliMixture(2).fit(x).probabilities.shape
        torch.Size([2, 2])
    """

    support = constraints.boolean
    family = "Bernoulli"

    probabilities: Tensor

    def __init__(
        self,
        num_components: int,
        pseudo_count: float = 1.0,
        num_starts: int = 5,
        max_iter: int = 5000,
        seed: int = 0,
    ) -> None:
        self.num_components = arguments.integer("num_components", num_components)
        super().__init__(num_components, 2, pseudo_count, num_starts, max_iter, seed)

    def _table(self) -> Tensor:
        return self._classes.mass[:, 1::2]  # columns hold the masses of 0 and 1 in turn
