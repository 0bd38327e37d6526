"""Plain torch networks: no Pyro here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae import checks

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, none after the last.

    Args:
        in_features: width of a row that goes in.
        hidden_dims: widths of the hidden layers; ``()`` makes the network affine.
        out_features: width of a row that comes out.
        activation: one of ``networks.ACTIVATIONS``.

    Input of shape (batch, in_features); output of shape (batch, out_features). A row of more dims
    (an image) is flattened first.

    Raises:
        ValueError: a row that does not have ``in_features`` entries.

    Example:
        >>> import torch
        >>> MLP(4, (8,), 2)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], out_features: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        checks.choice("activation", activation, tuple(ACTIVATIONS))
        self.in_features = checks.integer("in_features", in_features)
        self.out_features = checks.integer("out_features", out_features)
        widths = [self.in_features, *(checks.integer("hidden_dims", width) for width in hidden_dims)]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[-1] != self.in_features:
            raise checks.bad_value(
                "x",
                f"rows of width {self.in_features}",
                f"rows of width {x.shape[-1]}",
                "Pass rows of that width, or build the network for these.",
            )
        return self.layers(x)


def output_width(network: nn.Module) -> int | None:
    """The width of what ``network`` puts out, where it says so: its ``out_features``, else its last layer's."""
    if isinstance(network, nn.Sequential) and len(network):
        return output_width(network[-1])
    width = getattr(network, "out_features", None)
    return width if isinstance(width, int) else None
