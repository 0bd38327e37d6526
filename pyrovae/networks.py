"""Plain torch networks, without Pyro."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import arguments, rounding
from pyrovae.entries import check_sizes
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.registry import Registry
from pyrovae.rounding import blocks

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
}

#: Every network by its name.
REGISTRY: Registry[nn.Module] = Registry()


@REGISTRY.register("mlp")
class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, none after the last.

    Args:
        in_features: width of an input row.
        hidden_dims: widths of the hidden layers; ``()`` makes the network affine.
        out_features: width of an output row.
        activation: one of ``networks.ACTIVATIONS``.
        normalization: "none", "layer" (Ba, Kiros and Hinton 2016) or "batch" (Ioffe and Szegedy 2015),
            before every activation. Batch normalisation needs minibatches of at least two rows in training.
        dropout: the share of hidden units dropped at random after every activation (Srivastava et al.
            2014). In evaluation mode nothing is dropped, and batch normalisation uses running statistics.
        shortcut: whether to add a linear map of the input, zero before training, to the output. A decoder then learns weak
            dependence that deep ones miss, because z carries little of it at first (Dieng, Kim, Rush and Blei 2019).

    Input of shape (batch, in_features); output of shape (batch, out_features). Rows with more dims, such
    as images, are flattened first.

    Raises:
        ValueError: rows do not have ``in_features`` entries.

    Example:
        >>> import torch
        >>> MLP(4, (8,), 2)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        hidden_dims: Sequence[int],
        out_features: int,
        activation: str = "relu",
        normalization: str = "none",
        dropout: float = 0.0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        arguments.choice("activation", activation, tuple(ACTIVATIONS))
        arguments.choice("normalization", normalization, tuple(NORMALIZATIONS))
        if arguments.positive("dropout", dropout, or_zero=True) >= 1:
            raise bad_value(
                "dropout", "a share of the units, at least 0 and below 1", repr(dropout), "Pass 0.1, say."
            )
        self.in_features = arguments.integer("in_features", in_features)
        self.out_features = arguments.integer("out_features", out_features)
        direct = arguments.boolean("shortcut", shortcut)
        self.shortcut = nn.Linear(self.in_features, self.out_features, bias=False) if direct else None
        dims = [self.in_features, *widths("hidden_dims", hidden_dims)]
        layers: list[nn.Module] = []
        for width, following in pairwise(dims):
            layers.append(nn.Linear(width, following))
            if normalization != "none":
                layers.append(NORMALIZATIONS[normalization](following))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(dims[-1], self.out_features))
        if self.shortcut is not None:
            nn.init.zeros_(self.shortcut.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows_of(self.in_features, x)
        output = self.layers(rows)
        return output if self.shortcut is None else output + self.shortcut(rows)


@REGISTRY.register("conv_encoder")
class ConvEncoder(nn.Module):
    """Convolutions, each of which halves an image, and a linear layer: takes images and returns rows.

    Args:
        in_shape: (channels, height, width) of an image.
        out_features: width of an output row.
        channels: output channels of each convolution, 3 × 3 with stride 2; a side of n pixels becomes ⌈n/2⌉.
        activation: one of ``networks.ACTIVATIONS``, after every convolution.

    Input of shape (batch, channels, height, width) or, flat, (batch, channels · height · width). Output
    of shape (batch, out_features). Strides replace pooling, as in Springenberg et al. (2015).

    Raises:
        ValueError: rows do not have as many entries as such an image.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), 32)(torch.zeros(3, 784)).shape
        torch.Size([3, 32])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        arguments.choice("activation", activation, tuple(ACTIVATIONS))
        self.in_shape = _image("in_shape", in_shape)
        self.out_features = arguments.integer("out_features", out_features)
        channels = widths("channels", channels)
        layers: list[nn.Module] = []
        for depth, following in pairwise([self.in_shape[0], *channels]):
            layers += [nn.Conv2d(depth, following, 3, stride=2, padding=1), ACTIVATIONS[activation]()]
        height, width = _halvings(self.in_shape, len(channels))[-1]
        last = [self.in_shape[0], *channels][-1]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(last * height * width, self.out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(_rows_of(math.prod(self.in_shape), x).unflatten(1, self.in_shape))


@REGISTRY.register("conv_decoder")
class ConvDecoder(nn.Module):
    """A linear layer and transposed convolutions, each of which doubles an image: takes rows and returns images.

    Args:
        in_features: width of an input row.
        out_shape: (channels, height, width) of an image.
        outputs_per_dimension: how many numbers the likelihood needs for every entry of the image. On the last
            dim, all outputs of the first kind come first, then all of the second.
        channels: input channels of each transposed convolution, 3 × 3 with stride 2.
        activation: one of ``networks.ACTIVATIONS``, before every transposed convolution.
        flat: True returns flat rows, for a likelihood of flat rows; False returns images.

    Input of shape (batch, in_features). Output of shape (batch, ``out_features``), or of shape (batch,
    channels, height, outputs_per_dimension · width) with ``flat=False``. Radford, Metz and Chintala (2016).

    Example:
        >>> import torch
        >>> ConvDecoder(2, (1, 28, 28))(torch.zeros(3, 2)).shape
        torch.Size([3, 784])
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        outputs_per_dimension: int = 1,
        channels: Sequence[int] = (64, 32),
        activation: str = "relu",
        flat: bool = True,
    ) -> None:
        super().__init__()
        arguments.choice("activation", activation, tuple(ACTIVATIONS))
        self.in_features = arguments.integer("in_features", in_features)
        self.out_shape = _image("out_shape", out_shape)
        self.outputs_per_dimension = arguments.integer("outputs_per_dimension", outputs_per_dimension)
        self.flat = arguments.boolean("flat", flat)
        #: How many numbers the network returns for a row.
        self.out_features = self.outputs_per_dimension * math.prod(self.out_shape)
        depths = [*widths("channels", channels), self.outputs_per_dimension * self.out_shape[0]]
        sizes = _halvings(self.out_shape, len(depths) - 1)[::-1]  # from the smallest to the image's own
        layers: list[nn.Module] = [
            nn.Linear(self.in_features, depths[0] * math.prod(sizes[0])),
            nn.Unflatten(1, (depths[0], *sizes[0])),
        ]
        for (depth, following), (small, large) in zip(pairwise(depths), pairwise(sizes), strict=True):
            # a side of n pixels becomes 2n − 1, and one more if the target side is even
            more = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers += [
                ACTIVATIONS[activation](),
                nn.ConvTranspose2d(depth, following, 3, stride=2, padding=1, output_padding=more),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        images = self.layers(_rows_of(self.in_features, z, "z"))  # (batch, kinds · channels, height, width)
        if self.flat:
            return images.flatten(1)
        kinds = images.unflatten(1, (self.outputs_per_dimension, -1))
        return kinds.movedim(1, 3).flatten(3)


@REGISTRY.register("standardize")
class Standardize(nn.Module):
    """x ↦ (x − loc) / scale for each column, learned from the rows that a model is first fitted to.

    Pass one ``Standardize`` to an encoder and the same one to a likelihood of real values. It standardises the
    encoder's inputs and converts the likelihood's location and scale to x's own units. The networks then work on
    numbers of size one, and log P(x) stays a density of x. Before it has learned from rows it is the identity.
    If it learns from float64 rows, ``loc`` and ``scale`` are float64 whatever the networks' dtype, so that x − loc
    is computed before rounding.

    Args:
        num_features: entries in a row.
        log: whether to standardise log x instead, for positive x.

    Input of shape (batch, ...); output of the same shape.

    Example:
        >>> import torch
        >>> scaling = Standardize(2)
        >>> scaling.learn(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> scaling(torch.tensor([[1.0, 30.0]]))
        tensor([[0., 1.]])
    """

    loc: Tensor
    scale: Tensor
    learned: Tensor

    def __init__(self, num_features: int, log: bool = False) -> None:
        super().__init__()
        self.num_features = arguments.integer("num_features", num_features)
        self.log = arguments.boolean("log", log)
        self.register_buffer("loc", torch.zeros(self.num_features))
        self.register_buffer("scale", torch.ones(self.num_features))
        self.register_buffer("learned", torch.tensor(False))

    def learn(self, x: Tensor) -> None:
        """Set loc and scale to the means and standard deviations of the columns' cells; NaN is a missing cell.

        A column that is constant or has no cell keeps scale 1.
        """
        mean, squares = torch.zeros(2, self.num_features, dtype=torch.float64, device=x.device)
        total: Tensor | int = 0
        for _, block in blocks(_rows_of(self.num_features, x)):
            rows = block.double().log() if self.log else block.double()
            seen = ~rows.isnan()
            count: Tensor | int = len(rows)
            if bool(seen.all()):
                variance, centre = torch.var_mean(rows, dim=0, correction=0)
            else:
                count = seen.sum(dim=0)
                each = count.clamp(min=1)
                centre = rows.nan_to_num(0.0).sum(dim=0) / each
                variance = (rows - centre).square().nan_to_num(0.0).sum(dim=0) / each
            # merge means and squared deviations block by block (Chan, Golub and LeVeque 1983)
            total = total + count
            weight = count / (total.clamp(min=1) if isinstance(total, Tensor) else total)
            squares = squares + count * (variance + (1 - weight) * (centre - mean) ** 2)
            mean = mean + weight * (centre - mean)
        unseen = torch.nonzero(torch.as_tensor(total) == 0).flatten()
        if isinstance(total, Tensor) and len(unseen):
            raise bad_value(
                "x",
                "an observed cell of every column in the first chunk, from which Standardize learns",
                f"{len(unseen)} column(s) without any, first column {int(unseen[0])}",
                "Pass a chunk that has them first, or all rows in one chunk.",
            )
        scale = (squares / (total.clamp(min=1) if isinstance(total, Tensor) else total)).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if x.dtype == torch.float64:
            self.loc, self.scale = mean, scale
        else:
            self.loc.copy_(mean)
            self.scale.copy_(scale)
        self.learned.fill_(True)

    def forget(self, dtype: torch.dtype | None = None) -> None:
        """Become the identity again, with ``loc`` and ``scale`` in a dtype."""
        self.loc = torch.zeros_like(self.loc, dtype=dtype)
        self.scale = torch.ones_like(self.scale, dtype=dtype)
        self.learned.fill_(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Standardize:
        """Keep float64 if a cast would move ``loc`` by more than the rounding of standardised values."""
        loc, scale = self.loc, self.scale
        super()._apply(fn, recurse)
        if loc.device.type != "meta" != self.loc.device.type:
            moved = (self.loc.to(loc) - loc).abs()
            if bool((moved > rounding.TOLERANCE * scale).any()):
                self.loc, self.scale = (value.to(self.loc.device) for value in (loc, scale))
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load ``loc`` and ``scale`` with their dtype."""
        for name in ("loc", "scale"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                setattr(self, name, getattr(self, name).double())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        flat = _rows_of(self.num_features, x)
        return (((flat.log() if self.log else flat) - self.loc) / self.scale).view(x.shape)

    def extra_repr(self) -> str:
        return f"{self.num_features}, log={self.log}"


_FAR = 100.0  # standard deviations


@REGISTRY.register("features")
class Features(nn.Module):
    """The rows of a table, with the mask of observed cells beside them, as inputs of a network.

    Each column becomes its standardised value, or a zero and ones for its levels. A missing cell becomes zeros. The mask follows.
    Values beyond 100 standard deviations count as 100, so that one wrong cell does not overflow a network.

    Args:
        kinds: for every column "identity", "log" (for positive numbers), "log1p" (for counts), or how many levels it has.
        loc, scale: for every column the numbers that standardise its value, its logarithm or log(1 + x); unused for levels.

    Input of shape (batch, 2 · columns), as ``Encoder(..., missing=True)`` makes it. Output of shape (batch, ``out_features``).

    Raises:
        ValueError: rows have another number of columns.

    Example:
        >>> import torch
        >>> features = Features(["identity", 3], loc=[1.0, 0.0], scale=[2.0, 1.0])
        >>> features(torch.tensor([[5.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))
        tensor([[2., 0., 0., 1., 1., 1.],
                [0., 1., 0., 0., 0., 1.]])
    """

    loc: Tensor
    scale: Tensor
    log: Tensor
    log1p: Tensor
    plain: Tensor
    held_by: Tensor
    level: Tensor

    def __init__(self, kinds: Sequence[str | int], loc: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        for kind in kinds:
            if isinstance(kind, str):
                arguments.choice("kinds", kind, ("identity", "log", "log1p"))
        self.in_columns = len(kinds)
        plain = [column for column, kind in enumerate(kinds) if isinstance(kind, str)]
        hot = [(column, k) for column, kind in enumerate(kinds) if isinstance(kind, int) for k in range(kind)]
        self.out_features = len(plain) + len(hot) + len(kinds)
        self.register_buffer("loc", torch.tensor(loc, dtype=torch.get_default_dtype()))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.get_default_dtype()))
        self.register_buffer("log", torch.tensor([kind == "log" for kind in kinds]))
        self.register_buffer("log1p", torch.tensor([kind == "log1p" for kind in kinds]))
        self.register_buffer("plain", torch.tensor(plain, dtype=torch.long))
        self.register_buffer("held_by", torch.tensor([column for column, _ in hot], dtype=torch.long))
        self.register_buffer("level", torch.tensor([float(k) for _, k in hot]))

    def forward(self, x: Tensor) -> Tensor:
        x, observed = _rows_of(2 * self.in_columns, x).chunk(2, dim=-1)
        logs = x.clamp(min=torch.finfo(x.dtype).tiny).log()
        value = torch.where(self.log, logs, torch.where(self.log1p, x.clamp(min=0).log1p(), x))
        value = ((value - self.loc) / self.scale).clamp(-_FAR, _FAR).masked_fill(observed == 0, 0.0)
        hot = (x.index_select(-1, self.held_by) == self.level) * observed.index_select(-1, self.held_by)
        return torch.cat([value.index_select(-1, self.plain), hot, observed], dim=-1)

    def extra_repr(self) -> str:
        return f"{self.in_columns} columns, {self.out_features} outputs"


@contextmanager
def standardizing(
    modules: Iterable[nn.Module], x: Tensor, names: tuple[str, ...] | None = None
) -> Iterator[None]:
    """Let every ``Standardize`` among modules that has not learned yet learn from x; undo it if the block raises.

    Raises:
        ValueError: the squares of a column leave the range of its dtype; ``names`` are the columns' names for the message.
    """
    new = [module for module in modules if isinstance(module, Standardize) and not module.learned]
    if not all(module.log for module in new):
        check_sizes(x, names)
    before = [module.loc.dtype for module in new]
    try:
        for module in new:
            module.learn(x)
        yield
    except BaseException:
        for module, dtype in zip(new, before, strict=True):
            module.forget(dtype)
        raise


def widths(argument: str, values: Any) -> tuple[int, ...]:
    """Return ``values`` as widths of layers, whole numbers ≥ 1; raises ``TypeError`` or ``ValueError``."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise bad_type(argument, "a sequence of widths", shown(values), "Pass a tuple.")
    return tuple(arguments.integer(argument, value) for value in values)


def standardization(value: Standardize | None) -> Standardize | None:
    """Return ``value`` if it is a ``Standardize`` or None; raises ``TypeError``."""
    if value is not None and not isinstance(value, Standardize):
        raise bad_type(
            "standardize",
            "a networks.Standardize or None",
            shown(value),
            "Pass Standardize(columns).",
        )
    return value


def output_width(network: nn.Module) -> int | None:
    """Return the output width of ``network``: its ``out_features``, or those of its last layer; None if unknown."""
    if isinstance(network, nn.Sequential) and len(network):
        return output_width(network[-1])
    width = getattr(network, "out_features", None)
    return width if isinstance(width, int) else None


def _rows_of(width: int, x: Tensor, argument: str = "x") -> Tensor:
    """Return rows flattened to (batch, width); raises ``ValueError`` if their width differs."""
    rows = x.flatten(1) if x.dim() > 1 else x[:, None]
    if rows.shape[-1] != width:
        raise bad_value(
            argument,
            f"rows of width {width}",
            f"rows of width {rows.shape[-1]}, x of shape {tuple(x.shape)}",
            f"{_as_rows(width, x)} Or build the network for this width.",
        )
    return rows


def _as_rows(width: int, x: Tensor) -> str:
    """Return the advice for rows x that do not have ``width`` columns."""
    if x.dim() == 2 and len(x) == width:
        return "Pass x.T: rows lie on dim 0."
    if x.dim() == 1 and len(x) == width:
        return "Pass one row as x[None], or x.to_frame().T of a series."
    if x.dim() == 3 and len(x) == 1 and x.shape[2] == width:
        return "Pass x[0]: rows lie on dim 0."
    return "Pass rows of that width, on dim 0."


def check_width(network: nn.Module, x: Tensor, argument: str = "x", times: int = 1) -> None:
    """Raise ``ValueError`` unless an MLP takes ``times`` the width of rows. Other networks are checked by running them."""
    if isinstance(network, MLP):
        _rows_of(network.in_features // times, x, argument)


def _image(argument: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return ``shape`` as the shape of an image; raises ``TypeError`` or ``ValueError``."""
    shape = widths(argument, shape)
    if len(shape) != 3:
        raise bad_value(
            argument, "(channels, height, width)", repr(shape), "Pass 1 as the channels of grey images."
        )
    return shape


def _halvings(shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """Return (height, width) of an image, before and after each of ``times`` convolutions with stride 2."""
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes
