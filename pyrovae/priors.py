"""P_Ω(z): priors. Each is a module whose forward returns a Pyro distribution over one row's z.

``forward()`` takes no arguments and returns a distribution of batch shape () and event shape
(latent_dim,). To add a prior: write the class and decorate it with its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae import arguments, flows
from pyrovae.networks import widths
from pyrovae.registry import Registry
from pyrovae.rows import as_tensor

#: Every prior by its name: the class name in snake case.
REGISTRY: Registry[nn.Module] = Registry()


@REGISTRY.register("standard_normal")
class StandardNormal(nn.Module):
    """P(z) = N(z; 0, I), z of shape (latent_dim,). It has no parameters.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        # Buffers, so that .double() and .to(device) convert them; not saved, because they are constants.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


@REGISTRY.register("gaussian")
class Gaussian(nn.Module):
    """P(z) = N(z; m, diag s²), z of shape (latent_dim,). m and log s are learned, starting from N(0, I).

    Example:
        >>> Gaussian(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


@REGISTRY.register("gaussian_mixture")
class GaussianMixture(nn.Module):
    """P(z) = Σ_k w_k N(z; m_k, diag s_k²): weights, locations and log-scales are learned.

    Args:
        latent_dim: entries of z.
        num_components: K. The locations start at draws of N(0, I), so that the components differ. The
            scales start at 1 and the weights at 1/K.

    z has shape (latent_dim,). Dilokthanakul et al. (2016).

    Example:
        >>> p = GaussianMixture(3, num_components=5)()
        >>> p.batch_shape, p.event_shape
        (torch.Size([]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        self.num_components = arguments.integer("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> dist.TorchDistribution:
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return _Mixture(dist.Categorical(logits=self.logits), components)


@REGISTRY.register("vamp_prior")
class VampPrior(nn.Module):
    """P(z) = 1/K Σ_k Q_Ψ(z | u_k): a mixture of the encoder at K learned pseudo-inputs u_k.

    Args:
        encoder: the encoder of the same VAE. The prior only refers to it. The VAE owns its parameters and
            holds them once in ``parameters()`` and in ``state_dict()``. Therefore call ``.double()`` and
            ``.to(device)`` on the VAE, not on the prior.
        pseudo_inputs: the starting values of the u_k, shaped like K rows of x, such as K training rows.
            Tensor, numpy array or DataFrame; copied.

    z has shape (latent_dim,). A network with batch normalisation treats the pseudo-inputs as one batch of
    their own; layer normalisation does not depend on batches. Tomczak and Welling (2018).

    Raises:
        TypeError, ValueError: the encoder is not a torch module; the pseudo-inputs are not finite rows.

    Example:
        >>> from pyrovae.encoders import DiagonalNormal
        >>> from pyrovae.networks import MLP
        >>> p = VampPrior(DiagonalNormal(MLP(5, (8,), 2 * 3)), torch.zeros(4, 5))()
        >>> p.batch_shape, p.event_shape
        (torch.Size([]), torch.Size([3]))
    """

    encoder: nn.Module

    def __init__(self, encoder: nn.Module, pseudo_inputs: Any) -> None:
        super().__init__()
        # In __dict__, so that torch does not register the VAE's encoder a second time.
        self.__dict__["encoder"] = arguments.module("encoder", encoder)
        rows = as_tensor(pseudo_inputs, dtype=None, argument="pseudo_inputs")
        self.pseudo_inputs = nn.Parameter(rows.clone())

    def forward(self) -> dist.TorchDistribution:
        weights = dist.Categorical(logits=self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)))
        return _Mixture(weights, self.encoder(self.pseudo_inputs))


@REGISTRY.register("flow")
class Flow(nn.Module):
    """P(z) = N(f(z); 0, I) |det ∂f/∂z|: a neural spline flow f, learned.

    Every transformation of f is autoregressive. It maps each entry of z by a monotonic rational-quadratic
    spline on [−5, 5] and by the identity outside. A masked network computes the knots from the entries before.
    log P(z) takes one pass; a draw takes ``latent_dim``. Needs zuko: ``pip install 'pyrovae[flows]'``.

    Args:
        latent_dim: entries of z.
        num_transforms: how many transformations. They alternate between the order of the entries and its reverse.
        hidden_dims: hidden widths of the masked networks.

    z has shape (latent_dim,). Durkan et al. (2019); Papamakarios, Pavlakou and Murray (2017).

    Raises:
        ImportError: zuko is not installed.

    Example:
        >>> p = Flow(3)()
        >>> p.batch_shape, p.event_shape
        (torch.Size([]), torch.Size([3]))
    """

    def __init__(
        self, latent_dim: int, num_transforms: int = 3, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        self.base = StandardNormal(latent_dim)
        self.transform = (
            flows.zuko()
            .flows.NSF(
                latent_dim,
                transforms=arguments.integer("num_transforms", num_transforms),
                hidden_features=widths("hidden_dims", hidden_dims),
            )
            .transform
        )

    def forward(self) -> dist.TorchDistribution:
        return flows.NormalizingFlow(self.base(), self.transform().inv)


class _Mixture(dist.MixtureSameFamily):
    """A mixture over real vectors. The support of torch's mixture has no bijection, which HMC and others need."""

    support = constraints.real_vector
