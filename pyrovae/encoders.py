"""Q_Ψ(z | x): encoders. Each is a module whose forward returns a Pyro distribution over z.

``forward(x)`` takes rows of shape (batch, ...) and returns a distribution of batch shape (batch,) and event
shape (latent_dim,). ``forward(x, observed)`` also takes the mask of observed cells. To add an encoder: write
``outputs`` and ``forward``, which begins with ``self.encode(x, observed)``, and decorate the class with its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import arguments, flows
from pyrovae.networks import Standardize, output_width, standardization, widths
from pyrovae.refusals import bad_value
from pyrovae.registry import Registry

#: Every encoder by its name: the class name in snake case.
REGISTRY: Registry[Encoder] = Registry()


class Encoder(nn.Module, ABC):
    """Base of every family: holds the network and says how many outputs it needs.

    Args:
        network: maps rows of x to outputs, (batch, outputs).
        standardize: applied to the rows before the network; see ``networks.Standardize``.
        missing: whether ``network`` takes the mask of observed cells beside the rows, (batch, 2 · columns). It follows
            the flattened row and is 1 for every observed cell and 0 for every missing one.
    """

    def __init__(
        self, network: nn.Module, standardize: Standardize | None = None, missing: bool = False
    ) -> None:
        super().__init__()
        self.network = arguments.module("network", network)
        self.standardize = standardization(standardize)
        self.missing = arguments.boolean("missing", missing)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return the network's outputs, (batch, outputs), for rows standardised by ``standardize`` if there is one.

        Missing cells are 0 after standardising. ``observed`` has the shape of x; None means that no cell is missing.
        """
        if self.standardize is not None:
            own = next((p.dtype for p in self.network.parameters()), x.dtype)
            # float64 rows are rounded to the network's dtype only after they are standardised
            x = self.standardize(x).to(own)
        if observed is not None:
            x = x.masked_fill(~observed, 0.0)
        if self.missing:
            mask = torch.ones_like(x) if observed is None else observed.to(x)
            x = torch.cat([x.reshape(len(x), -1), mask.reshape(len(x), -1)], dim=1)
        return self.network(x)

    @classmethod
    @abstractmethod
    def outputs(cls, latent_dim: int) -> int:
        """Return how many network outputs ``latent_dim`` latent dimensions need."""

    @abstractmethod
    def forward(self, x: Tensor, observed: Tensor | None = None) -> dist.TorchDistribution:
        """Return Q(z | x_obs) for rows of shape (batch, ...): batch shape (batch,), event shape (latent_dim,).

        ``observed`` is a boolean tensor of the shape of x, True where a cell is observed; None if no cell is
        missing.
        """


@REGISTRY.register("diagonal_normal")
class DiagonalNormal(Encoder):
    """Q(z | x) = N(z; μ(x), diag σ(x)²): a mean-field Gaussian (Kingma and Welling 2014).

    ``network`` maps rows of x to (batch, 2 · latent_dim): the means, then the log-scales log σ.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> q = DiagonalNormal(MLP(5, (8,), 2 * 3))(torch.zeros(7, 5))
        >>> q.batch_shape, q.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    @classmethod
    def outputs(cls, latent_dim: int) -> int:
        return 2 * latent_dim

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dist.TorchDistribution:
        loc, log_scale = self.encode(x, observed).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


@REGISTRY.register("full_rank_normal")
class FullRankNormal(Encoder):
    """Q(z | x) = N(z; μ(x), L(x) L(x)ᵀ): a Gaussian with a full covariance matrix.

    ``network`` maps rows of x to outputs of shape (batch, latent_dim · (latent_dim + 3) / 2). These are the
    means, the logarithms of the diagonal of the lower triangular L, then its entries below the diagonal, row
    by row. If the model is linear and Gaussian, the true posterior is in this family. Kingma and Welling
    (2019), section 2.5.1.

    Raises:
        ValueError: the network's output width is not of this form.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> q = FullRankNormal(MLP(5, (8,), FullRankNormal.outputs(3)))(torch.zeros(7, 5))
        >>> q.batch_shape, q.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    @classmethod
    def outputs(cls, latent_dim: int) -> int:
        return latent_dim * (latent_dim + 3) // 2

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dist.TorchDistribution:
        outputs = self.encode(x, observed)
        width = outputs.shape[-1]
        latent_dim = (math.isqrt(9 + 8 * width) - 3) // 2
        if self.outputs(latent_dim) != width:
            raise bad_value(
                "network",
                "latent_dim · (latent_dim + 3) / 2 outputs: the means and the triangle of L",
                str(width),
                "Give it FullRankNormal.outputs(latent_dim) outputs.",
            )
        loc, log_diagonal, below = outputs.split([latent_dim, latent_dim, width - 2 * latent_dim], dim=-1)
        tril = torch.diag_embed(log_diagonal.exp())  # (batch, latent_dim, latent_dim)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1, device=tril.device)
        tril[..., rows, columns] = below
        return dist.MultivariateNormal(loc, scale_tril=tril)


@REGISTRY.register("flow")
class Flow(Encoder):
    """Q(z | x): z = f(μ(x) + σ(x) ε; h(x)), ε ~ N(0, I): an inverse autoregressive flow f.

    f consists of transformations z_i ↦ s_i z_i + m_i. A masked network computes s_i > 0 and m_i from h and
    the entries before z_i. A draw and its log Q take one pass. log Q of another z takes ``latent_dim`` passes,
    one for each entry. Needs zuko: ``pip install 'pyrovae[flows]'``.

    Args:
        network: maps rows of x to (batch, 2 · latent_dim + ``num_features``): the means μ, the log-scales
            log σ, then the features h. It needs an attribute ``out_features`` with that width.
        num_transforms: how many transformations. They alternate between the order of the entries and its reverse.
        hidden_dims: hidden widths of the masked networks.
        standardize: applied to the rows before the network.
        missing: as in ``Encoder``.

    Kingma et al. (2016).

    Raises:
        ImportError: zuko is not installed.
        ValueError: the network's output width cannot be read or is not of this form.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> q = Flow(MLP(5, (8,), Flow.outputs(3)))(torch.zeros(7, 5))
        >>> q.batch_shape, q.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    #: The width of h.
    num_features = 16

    def __init__(
        self,
        network: nn.Module,
        num_transforms: int = 2,
        hidden_dims: Sequence[int] = (64, 64),
        standardize: Standardize | None = None,
        missing: bool = False,
    ) -> None:
        super().__init__(network, standardize, missing)
        width = output_width(network)
        self.latent_dim = ((width or 0) - self.num_features) // 2
        if self.latent_dim < 1 or width != self.outputs(self.latent_dim):
            raise bad_value(
                "network",
                f"2 · latent_dim + {self.num_features} outputs: means, log-scales and features",
                f"a {type(network).__name__} without out_features" if width is None else str(width),
                "Give it Flow.outputs(latent_dim) outputs, and store that number in out_features.",
            )
        self.transform = (
            flows.zuko()
            .flows.MAF(
                self.latent_dim,
                context=self.num_features,
                transforms=arguments.integer("num_transforms", num_transforms),
                hidden_features=widths("hidden_dims", hidden_dims),
            )
            .transform
        )

    @classmethod
    def outputs(cls, latent_dim: int) -> int:
        return 2 * latent_dim + cls.num_features

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dist.TorchDistribution:
        loc, log_scale, features = self.encode(x, observed).split(
            [self.latent_dim, self.latent_dim, self.num_features], dim=-1
        )
        return flows.NormalizingFlow(dist.Normal(loc, log_scale.exp()).to_event(1), self.transform(features))
