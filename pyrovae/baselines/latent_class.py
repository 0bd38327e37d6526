"""Latent classes: categorical columns that are independent within a class, with exact log P(x)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, constraints

from pyrovae import arguments, noise
from pyrovae.baselines import columns
from pyrovae.baselines.base import Incomplete, register
from pyrovae.baselines.observed import climb

_BLOCK = 4096  # rows one-hot encoded at once
_SCOUTING = 30  # steps from every start; only the best start continues (Biernacki, Celeux and Govaert 2003)
_TOLERANCE = 1e-9  # nats a row and step


@dataclass(frozen=True)
class Classes:
    """The parameters: ``weights`` π, shape (classes,); ``mass`` θ, shape (classes, Σ_d K_d)."""

    weights: Tensor
    mass: Tensor

    def log_joint(self, hot: Tensor) -> Tensor:
        """Return log π_c + log P(x_n | class c), shape (rows, classes), for one-hot rows (rows, Σ_d K_d)."""
        log_mass = self.mass.log()
        log_p = hot @ log_mass.nan_to_num(neginf=0.0).T
        impossible = self.mass == 0
        if bool(impossible.any()):
            log_p = log_p.masked_fill(hot @ impossible.to(hot).T > 0, -torch.inf)
        return self.weights.log() + log_p


@register("latent_class")
class LatentClass(Incomplete):
    """x ~ Σ_c π_c Π_d Categorical(x_d; θ_cd), for columns of categories 0, 1, …; exact.

    Fitted by EM from several starts. The best start continues to a local maximum of

        Σ_n log P(x_n) + pseudo_count · Σ_cdk log θ_cdk,

    the likelihood with pseudo-counts that keep every category possible in every class. This maximum is the
    posterior's mode under a Dirichlet(1 + pseudo_count) prior. Lazarsfeld and Henry (1968); Dempster,
    Laird and Rubin (1977). If cells are missing, a row's class is inferred from its observed cells, and only these are
    counted.

    Args:
        num_classes: how many classes.
        num_categories: K, for all columns or one a column. None means one more than a column's largest
            training value.
        pseudo_count: per category; 0 is maximum likelihood. With 0, rows with a value that no training row has
            have probability 0 and raise ``ValueError``.
        num_starts, seed: how many starts, and the seed of their noise.
        max_iter: the most steps of EM. A fit that needs more warns and says so in ``summary``.

    After ``fit``: ``weights`` π, shape (classes,), largest first; ``probabilities``, θ of each column, shape
    (classes, K_d); ``history``, the objective in nats a row at each step of EM, which never falls; ``converged``.

    Raises:
        ValueError: values are not categories, or are beyond num_categories.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0, 0], [0, 0], [2, 1], [2, 1]])
        >>> LatentClass(2).fit(x).probabilities[0].shape
        torch.Size([2, 3])
    """

    measure = "mass"
    support: ClassVar[constraints.Constraint] = constraints.nonnegative_integer
    family = "Categorical"

    weights: Tensor
    derived = ("_one_hot", "_classes")

    probabilities: Sequence[Tensor] | Tensor

    def __init__(
        self,
        num_classes: int,
        num_categories: int | Sequence[int] | None = None,
        pseudo_count: float = 1.0,
        num_starts: int = 5,
        max_iter: int = 5000,
        seed: int = 0,
    ) -> None:
        self.num_classes = arguments.integer("num_classes", num_classes)
        self.num_categories = num_categories
        self.pseudo_count = arguments.positive("pseudo_count", pseudo_count, or_zero=True)
        self.num_starts = arguments.integer("num_starts", num_starts)
        self.max_iter = arguments.integer("max_iter", max_iter)
        self.seed = arguments.integer("seed", seed, minimum=0)

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        self._sizes = columns.categories(rows, self.num_categories)
        columns.known(rows, self._sizes, self.names.get("x"))
        self._one_hot = columns.OneHot(self._sizes)
        scouts = [
            self._climb(rows, self._start(rows, i, observed), _SCOUTING, observed)[:2]
            for i in range(self.num_starts)
        ]
        start, before = max(scouts, key=lambda scout: scout[1][-1])
        classes, after, self.converged = self._climb(rows, start, self.max_iter, observed)
        self.history = (*before, *after)
        order = classes.weights.argsort(descending=True)
        self.weights, self._mass = classes.weights[order], classes.mass[order]
        self._derive()
        self.probabilities = self._table()
        self._warn_unconverged()

    def _derive(self) -> None:
        self._one_hot = columns.OneHot(self._sizes)
        self._classes = Classes(self.weights, self._mass)

    def _table(self) -> Sequence[Tensor] | Tensor:
        """Return θ in the form that the user reads."""
        return self._one_hot.split(self._classes.mass)

    def _start(self, rows: Tensor, start: int, observed: Tensor | None = None) -> Classes:
        """Return classes whose θ is half the columns' marginals and half one training row, if that row has the column."""
        with noise.seeded(noise.derive(self.seed, noise.Stream.WEIGHTS, start)):
            chosen = torch.randperm(len(rows)).repeat(1 + self.num_classes // len(rows))[: self.num_classes]
        counts = torch.stack([hot.sum(dim=0) for hot in self._hot(rows, observed)]).sum(dim=0)
        marginal = self._one_hot.normalized(counts + self.pseudo_count)
        weights = rows.new_full((self.num_classes,), 1 / self.num_classes)
        if observed is not None:
            hot = self._one_hot(rows[chosen], observed[chosen])
            return Classes(weights, self._one_hot.normalized(marginal + hot))
        return Classes(weights, (marginal + self._one_hot(rows[chosen])) / 2)

    def _hot(self, rows: Tensor, observed: Tensor | None) -> Iterator[Tensor]:
        """Yield the one-hot rows block by block."""
        for block in torch.arange(len(rows)).split(_BLOCK):
            yield self._one_hot(rows[block], None if observed is None else observed[block])

    def _climb(
        self, rows: Tensor, classes: Classes, steps: int, observed: Tensor | None = None
    ) -> tuple[Classes, list[float], bool]:
        """Run EM and return the classes, the objective at every step and whether it converged."""
        return climb(lambda at: self._step(rows, at, observed), classes, steps, _TOLERANCE)

    def _step(self, rows: Tensor, classes: Classes, observed: Tensor | None = None) -> tuple[float, Classes]:
        """Take one EM step: return the objective before it, in nats a row, and the parameters after it."""
        counts, sizes, total = torch.zeros_like(classes.mass), torch.zeros_like(classes.weights), 0.0
        for hot in self._hot(rows, observed):
            log_joint = classes.log_joint(hot)
            log_evidence = log_joint.logsumexp(dim=1, keepdim=True)
            shares = (log_joint - log_evidence).exp()  # (rows, classes)
            counts, sizes = counts + shares.T @ hot, sizes + shares.sum(dim=0)
            total += float(log_evidence.sum())
        if self.pseudo_count:
            total += self.pseudo_count * float(classes.mass.log().sum())
        counts = counts + self.pseudo_count
        # Without pseudo-counts, a class that no row with the column belongs to has no best θ and keeps its own.
        kept = (sizes == 0)[:, None] | (self._one_hot.totals(counts) == 0)
        mass = self._one_hot.normalized(torch.where(kept, classes.mass, counts))
        return total / len(rows), Classes(sizes / len(rows), mass)

    def _log_prob(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        return self._log_joint(rows, observed).logsumexp(dim=1)

    def _log_joint(self, rows: Tensor, observed: Tensor | None) -> Tensor:
        """Return log π_c + log P(x_n,obs | class c), shape (rows, classes)."""
        columns.known(rows, self._one_hot.sizes, self.names.get("x"))
        return torch.cat([self._classes.log_joint(hot) for hot in self._hot(rows, observed)])

    def _draw(self, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
        drawn = Categorical(logits=self._log_joint(rows, observed).expand(num_draws, -1, -1)).sample()
        return self._of_classes(drawn.flatten()).unflatten(0, drawn.shape)

    def _sample(self, num_rows: int) -> Tensor:
        drawn = torch.multinomial(self.weights, num_rows, replacement=True)
        return self._of_classes(drawn)

    def _of_classes(self, drawn: Tensor) -> Tensor:
        """Return a row of each class in ``drawn``, shape (rows,)."""
        tables = self._one_hot.split(self._classes.mass[drawn])
        return torch.cat([torch.multinomial(table, 1) for table in tables], dim=1).double()

    @property
    def num_parameters(self) -> float:
        self._require_fit()
        return self.num_classes - 1 + self.num_classes * sum(size - 1 for size in self._sizes)

    def summary(self) -> str:
        width = self._require_fit()
        return (
            f"{type(self).__name__}, {self.num_classes} classes, {width} columns, pseudo-count {self.pseudo_count:g}, "
            f"{len(self.seen)} rows{self._state}, plug-in, exact"
        )
