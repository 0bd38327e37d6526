"""Pool holds pairs (x, z) simulated from the model. The z of pairs near a row are starts in the search of its posterior.

Such starts reach parts of a posterior that draws of encoder and prior hardly ever hit, such as a narrow second mode. The
choice is that of approximate Bayesian computation (Rubin 1984), and the move of z towards the row is a linear regression
of z on x (Beaumont, Zhang and Balding 2002).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.posterior import Posterior, undisturbed
from pyrovae.evidence.simulated import comparable, simulated
from pyrovae.noise import Stream, derive
from pyrovae.refusals import Refused

_PAIRS, _MOST_NUMBERS = 2000, 1 << 24
_NEAREST = 16
_RIDGE = 1e-3  # of the number of pairs, for columns of unit variance


class Pool:
    """Pairs simulated once per call, from noise that depends on the seed alone.

    It has no pairs without an evaluation, or if rows cannot be simulated from the model, or are given values beside x, which the pairs would lack.
    """

    def __init__(self, evaluation: Evaluation | None) -> None:
        self._points: Tensor | None = None
        if evaluation is None or set(evaluation.batch) != {"x"}:
            return
        # Simulated rows bring an exact draw of their posterior. The pool is made without them.
        seed = derive(evaluation.seed, Stream.STARTS)
        plain = replace(evaluation, seed=seed, simulated=None, source=None, runner=None)
        x = evaluation.batch["x"]
        count = min(_PAIRS, _MOST_NUMBERS // max(1, x[0].numel()))
        try:
            made = simulated(plain, torch.zeros(count, dtype=torch.long, device=x.device))
        except Refused:
            return
        every = torch.arange(count, device=x.device)
        plain = replace(plain, batch=made.batch, numbers=every, keys=every)
        with undisturbed(plain, Stream.STARTS) as drawn:
            u = Posterior(plain).flatten(made.draw(slice(None)), drawn)[0].double()
        self._rows = made.batch["x"].reshape(count, -1)
        sound = torch.isfinite(u).all(dim=-1)
        self._points = comparable(self._rows, self._rows).where(sound[:, None], torch.inf)
        self._u = u.nan_to_num(0.0, 0.0, 0.0)
        points = self._points[sound].double()
        centre = points.mean(dim=0)
        apart = points - centre
        ridge = _RIDGE * len(points) * torch.eye(points.shape[1], dtype=points.dtype, device=x.device)
        self._slope = torch.linalg.solve(apart.T @ apart + ridge, apart.T @ self._u[sound])

    def near(self, x: Tensor) -> Tensor | None:
        """Return u of pairs near each row, (2 · 16, rows, dim): as simulated, then moved to the row by the regression."""
        if self._points is None:
            return None
        points = comparable(x.reshape(len(x), -1), self._rows)
        nearest = (
            torch.cdist(points, self._points).nan_to_num(torch.inf).topk(_NEAREST, largest=False).indices.T
        )
        u = self._u[nearest]
        moved = u + (points - self._points[nearest]).double() @ self._slope
        return torch.cat([u, moved])
