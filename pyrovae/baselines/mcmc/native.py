"""run_chain() runs one NUTS chain by nutpie, whose sampler is compiled (Rust), on a traced log density."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.progress import Progress
from pyrovae.torch_private import LinAlgError
from pyrovae.tracing import TracedDensity

#: nutpie does not find a step size in fewer steps of warm-up; a chain may then never move.
FEWEST_STEPS = 20
#: Leapfrog steps of a draw, and so calls of the density, of an ordinary posterior.
CALLS_A_STEP = 12


def nutpie() -> Any:
    """Return the module nutpie, or None where it is not installed (``pip install pyrovae[nuts]``)."""
    try:
        import nutpie
    except ImportError:
        return None
    return nutpie


def run_chain(
    sampler: Any,
    density: TracedDensity,
    start: Tensor,
    *,
    warmup_steps: int,
    num_samples: int,
    seed: int,
    bar: Progress,
    target_accept_prob: float,
    full_mass: bool,
    max_tree_depth: int,
) -> tuple[Tensor, int]:
    """Return a chain's draws, shape (draws, dim), and the number of divergences after warm-up.

    Args:
        sampler: the module nutpie.
        density: at u.
        start: u, shape (dim,).
        warmup_steps: steps that adapt step size and mass.
        num_samples: draws after them.
        seed: of the chain.
        bar: counts the steps.
        target_accept_prob: of a leapfrog trajectory.
        full_mass: whether the mass matrix has correlations.
        max_tree_depth: a draw takes at most 2 to this power steps.
    """
    watched = _Watched(density, bar)
    (dim,) = start.shape
    model = sampler.compiled_pyfunc.from_pyfunc(
        dim,
        lambda: watched.score,
        lambda *_: watched.keep,
        [np.dtype("float64")],
        [(dim,)],
        ["u"],
        make_initial_point_fn=lambda _: start.numpy(),
    )
    running = sampler.sample(
        model,
        draws=num_samples,
        tune=warmup_steps,
        chains=1,  # the callbacks hold Python's lock: two chains at once take as long as in turn, or longer
        cores=1,
        seed=seed,
        progress_bar=False,
        save_warmup=False,
        low_rank_modified_mass_matrix=full_mass,
        blocking=False,
        target_accept=target_accept_prob,
        maxdepth=max_tree_depth,
    )
    try:
        trace = running.wait()
    except KeyboardInterrupt:
        running.cancel()
        raise
    finally:
        if watched.error is not None:
            raise watched.error
    draws = torch.from_numpy(np.array(trace.posterior["u"].values[0]))
    return draws, int(trace.sample_stats["diverging"].values.sum())


class _Watched:
    """The callbacks of the sampler's thread, which must not raise: an error there stops the process's sampler for good.

    After an error every point has density 0. The chain then ends within a moment, and the error is raised.
    """

    def __init__(self, density: TracedDensity, bar: Progress) -> None:
        self._density, self._bar = density, bar
        self.error: BaseException | None = None

    def score(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        """Return log density and gradient, or NaN, which the sampler counts as a divergence."""
        if self.error is None:
            try:
                value, gradient = self._density(torch.from_numpy(u))
                return float(value), gradient.numpy()
            except LinAlgError:
                pass  # a matrix is singular at u; Pyro's NUTS counts a divergence, too
            except BaseException as error:
                self.error = error
        return float("nan"), np.zeros_like(u)

    def keep(self, u: np.ndarray) -> dict[str, np.ndarray]:
        """Count a step and return its draw."""
        if self.error is None:
            try:
                self._bar.advance()
            except BaseException as error:
                self.error = error
        return {"u": u.copy()}
