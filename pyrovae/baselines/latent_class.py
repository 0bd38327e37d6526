"""Latent classes: categorical columns that are independent within a class, with exact log P(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae import arguments, noise
from pyrovae.baselines import columns
from pyrovae.baselines.base import ClosedForm, register, warn_unconverged

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
class LatentClass(ClosedForm):
    """x ~ Σ_c π_c Π_d Categorical(x_d; θ_cd), for columns of categories 0, 1, …; exact.

    Fitted by EM from several starts. The best start continues to a local maximum of

        Σ_n log P(x_n) + pseudo_count · Σ_cdk log θ_cdk,

    the likelihood with pseudo-counts that keep every category possible in every class. This maximum is the
    posterior's mode under a Dirichlet(1 + pseudo_count) prior. Lazarsfeld and Henry (1968); Dempster,
    Laird and Rubin (1977).

    Args:
        num_classes: how many classes.
        num_categories: K, for all columns or one a column. None means one more than a column's largest
            training value.
        pseudo_count: per category; 0 is maximum likelihood. Rows with a value that no training row has then have
            probability 0 and raise ``ValueError``.
        num_starts, seed: how many starts, and the seed of their noise.
        max_iter: of EM. A fit that needs more warns and says so in ``summary``.

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
    history: tuple[float, ...]
    converged: bool

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

    def _fit(self, rows: Tensor) -> None:
        self._sizes = columns.categories(rows, self.num_categories)
        columns.known(rows, self._sizes)
        self._one_hot = columns.OneHot(self._sizes)
        scouts = [self._climb(rows, self._start(rows, i), _SCOUTING)[:2] for i in range(self.num_starts)]
        start, before = max(scouts, key=lambda scout: scout[1][-1])
        classes, after, self.converged = self._climb(rows, start, self.max_iter)
        self.history = (*before, *after)
        order = classes.weights.argsort(descending=True)
        self.weights, self._mass = classes.weights[order], classes.mass[order]
        self._derive()
        self.probabilities = self._table()
        if not self.converged:
            warn_unconverged(self, self.max_iter)

    def _derive(self) -> None:
        self._one_hot = columns.OneHot(self._sizes)
        self._classes = Classes(self.weights, self._mass)

    def _table(self) -> Sequence[Tensor] | Tensor:
        """Return θ in the form that the user reads."""
        return self._one_hot.split(self._classes.mass)

    def _start(self, rows: Tensor, start: int) -> Classes:
        """Return classes whose θ is half the columns' marginals and half one training row."""
        with noise.seeded(noise.derive(self.seed, noise.Stream.WEIGHTS, start)):
            chosen = torch.randperm(len(rows)).repeat(1 + self.num_classes // len(rows))[: self.num_classes]
        counts = torch.stack([self._one_hot(block).sum(dim=0) for block in rows.split(_BLOCK)]).sum(dim=0)
        marginal = self._one_hot.normalized(counts + self.pseudo_count)
        weights = rows.new_full((self.num_classes,), 1 / self.num_classes)
        return Classes(weights, (marginal + self._one_hot(rows[chosen])) / 2)

    def _climb(self, rows: Tensor, classes: Classes, steps: int) -> tuple[Classes, list[float], bool]:
        """Run EM and return the classes, the objective at every step and whether it converged."""
        history: list[float] = []
        for _ in range(steps):
            objective, after = self._step(rows, classes)
            history.append(objective)
            if len(history) > 1 and history[-1] - history[-2] < _TOLERANCE:
                return classes, history, True
            classes = after
        return classes, history, False

    def _step(self, rows: Tensor, classes: Classes) -> tuple[float, Classes]:
        """Take one EM step: return the objective before it, in nats a row, and the parameters after it."""
        counts, sizes, total = torch.zeros_like(classes.mass), torch.zeros_like(classes.weights), 0.0
        for block in rows.split(_BLOCK):
            hot = self._one_hot(block)
            log_joint = classes.log_joint(hot)
            log_evidence = log_joint.logsumexp(dim=1, keepdim=True)
            shares = (log_joint - log_evidence).exp()  # (rows, classes)
            counts, sizes = counts + shares.T @ hot, sizes + shares.sum(dim=0)
            total += float(log_evidence.sum())
        if self.pseudo_count:
            total += self.pseudo_count * float(classes.mass.log().sum())
        # Without pseudo-counts, a class that no row belongs to has no best θ and keeps its own.
        kept = (sizes == 0)[:, None]
        mass = self._one_hot.normalized(torch.where(kept, classes.mass, counts + self.pseudo_count))
        return total / len(rows), Classes(sizes / len(rows), mass)

    def _log_prob(self, rows: Tensor) -> Tensor:
        columns.known(rows, self._one_hot.sizes)
        blocks = [self._classes.log_joint(self._one_hot(block)) for block in rows.split(_BLOCK)]
        return torch.cat(blocks).logsumexp(dim=1)

    def _sample(self, num_rows: int) -> Tensor:
        drawn = torch.multinomial(self.weights, num_rows, replacement=True)
        tables = self._one_hot.split(self._classes.mass[drawn])
        return torch.cat([torch.multinomial(table, 1) for table in tables], dim=1).double()

    @property
    def num_parameters(self) -> float:
        self._require_fit()
        return self.num_classes - 1 + self.num_classes * sum(size - 1 for size in self._sizes)

    def summary(self) -> str:
        width = self._require_fit()
        state = "" if self.converged else ", not converged"
        return (
            f"{type(self).__name__}, {self.num_classes} classes, {width} columns, pseudo-count {self.pseudo_count:g}, "
            f"{len(self.seen)} rows{state}, plug-in, exact"
        )
