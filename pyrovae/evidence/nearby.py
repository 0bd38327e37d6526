"""Pool holds pairs (x, z) simulated from the model. The z of pairs near a row are starts in the search of its posterior.

Such starts reach parts of a posterior that draws of encoder and prior hardly ever hit, such as a narrow second mode. The
choice is that of approximate Bayesian computation (Rubin 1984). A linear regression of z on x moves z towards the row
(Beaumont, Zhang and Balding 2002).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.posterior import Posterior, undisturbed
from pyrovae.evidence.simulated import comparable, simulated
from pyrovae.noise import Stream, derive
from pyrovae.pair import Batch
from pyrovae.rows import restored

_PAIRS, _MOST_NUMBERS = 2000, 1 << 24
_NEAREST = 16
_RIDGE = 1e-3  # of the number of pairs, for columns of unit variance


class Pool:
    """Pairs simulated once per call, from noise that depends on the seed alone.

    Pairs are complete rows. There are none without an evaluation, for rows with values beside x other than ``observed``, or
    if rows cannot be simulated.
    """

    def __init__(self, evaluation: Evaluation | None) -> None:
        self._points: Tensor | None = None
        if evaluation is None or evaluation.batch.keys() - {"x", "observed"}:
            return
        # Simulated rows bring an exact draw of their posterior. The pool is made without them.
        seed = derive(evaluation.seed, Stream.STARTS)
        x, batch = evaluation.batch["x"], evaluation.batch
        if "observed" in batch:
            batch = batch | {"observed": torch.ones_like(batch["observed"])}
        plain = replace(evaluation, batch=batch, seed=seed, simulated=None, source=None, runner=None)
        count = min(_PAIRS, _MOST_NUMBERS // max(1, x[0].numel()))
        try:
            made = simulated(plain, torch.zeros(count, dtype=torch.long, device=x.device))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # the user's model may be unable to simulate rows; the search goes on without pairs
            return
        every = torch.arange(count, device=x.device)
        plain = replace(plain, batch=made.batch, numbers=every, keys=every)
        with undisturbed(plain, Stream.STARTS) as drawn:
            u = Posterior(plain).flatten(made.draw(slice(None)), drawn)[0].double()
        rows = made.batch["x"].reshape(count, -1)
        sound = torch.isfinite(u).all(dim=-1) & torch.isfinite(rows).all(dim=-1)
        if int(sound.sum()) < _NEAREST:
            return
        self._rows, self._u = rows[sound], u[sound]
        self._points = comparable(self._rows, self._rows)
        self._slope = _slopes((self._points - self._points.mean(dim=0)).double(), self._u)

    def near(self, batch: Batch) -> Tensor | None:
        """Return u of pairs near each row, (2 · 16, rows, dim): as simulated, then moved to the row by the regression.

        Distances and moves leave out the row's missing cells.
        """
        if self._points is None:
            return None
        rows = restored(batch["x"], batch.get("observed")).reshape(len(batch["x"]), -1)
        points, observed = comparable(rows, self._rows), ~rows.isnan()
        apart = torch.cdist(points, self._points)
        holed = (~observed).any(dim=1)
        if bool(holed.any()):
            seen = observed[holed].to(points)
            # Σ_d (point_d − pair_d)² over observed d, without the row's own constant
            apart[holed] = seen @ self._points.square().T - 2 * (seen * points[holed]) @ self._points.T
        nearest = apart.topk(_NEAREST, largest=False).indices.T
        u = self._u[nearest]
        moved = u + ((points - self._points[nearest]) * observed).double() @ self._slope
        return torch.cat([u, moved])


def _slopes(x: Tensor, u: Tensor) -> Tensor:
    """Return the slopes of a ridge regression of u on centred columns, (columns, dim): (xᵀx + λI)⁻¹xᵀu = xᵀ(xxᵀ + λI)⁻¹u."""
    few = x.shape[1] < len(x)
    products = x.T @ x if few else x @ x.T
    products.diagonal().add_(_RIDGE * len(x))
    return torch.linalg.solve(products, x.T @ u) if few else x.T @ torch.linalg.solve(products, u)
