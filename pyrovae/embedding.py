"""embed() returns means and standard deviations of the latents of rows, by encoder or posterior, as a frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae import noise as noises
from pyrovae.diagnostics import pareto_k
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import sampled
from pyrovae.evidence.draws import Draws, normalised
from pyrovae.evidence.posterior import undisturbed
from pyrovae.evidence.result import LogEvidence, frame_of, verdicts, worse
from pyrovae.evidence.run import Run
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.pair import Given, check_have_means, guide_moments, lacking
from pyrovae.progress import Progress
from pyrovae.refusals import bad_type, bad_value, parameters_hold
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "embed"]

METHODS = ("encoder", *sampled.METHODS)
# Effective draws below which "auto" asks fitted posteriors: a mean then has an error of a seventh of its standard deviation.
_FEWEST_EFFECTIVE = 50

#: Mean and standard deviation of every latent by name, shape (2, rows, entries), float64; NaN where a row lacks the entry.
_Moments = dict[str, Tensor]


@takes_turns
def embed(
    model: Any,
    x: Any,
    *,
    method: str = "encoder",
    num_samples: int = 1000,
    seed: int = 0,
    noise: str = "index",
    check: bool = True,
    progress: bool = False,
) -> pd.DataFrame:
    """Return the mean and standard deviation of every latent of every row, by default the guide's.

    With "encoder" these are the moments of the guide Q(z | x), not of the posterior P(z | x). They are exact if the guide has
    one latent, in a distribution with a closed mean and variance. Otherwise they come from K draws, and a mean has a standard
    error of at most sd/√K. Other methods weigh K draws of a proposal q:

        E[z | x] ≈ Σ_k w_k z_k / Σ_k w_k,   w_k = P(x, z_k) / q(z_k),   with standard error of about sd/√ESS.

    Args:
        model: a ``VAE``, a ``LatentVariableModel``, or a fitted ``PPCA`` or ``FactorAnalysis``, whose posterior is exact.
        x: rows on dim 0, in any form that ``log_evidence`` takes; cells may be missing if the model allows it.
        method: "encoder": moments of Q(z | x), which are as good as the guide. A guide that was not trained on rows with
            missing cells may be far off for such rows. "refined": moments of P(z | x), by draws from posteriors fitted to
            each row. "importance": moments of P(z | x), by draws of the encoder. "auto": by draws of the encoder, and by
            fitted posteriors for rows with fewer than 50 effective draws or a bad verdict. With discrete latents, by sums over
            all z, or by draws for every value of the discrete ones, as in ``log_evidence``.
        num_samples: K, draws of z a row, at least 100.
        seed: of the draws; a row's numbers depend on the seed and its key, not on other rows.
        noise: the key of a row's draws: its "index" in ``x`` or its "content".
        check: try methods that weigh draws on rows simulated from the model; see ``evidence.check``.
        progress: show a bar, or plain lines if there is no terminal. "auto" has another for rows that it answers again.

    The options apply to pairs.

    Returns:
        A frame with the index of ``x``, float64. A scalar latent "z" has the columns "z" and "z_sd". Elements of others are
        numbered: "z_0", "z_1", …, then "z_0_sd", "z_1_sd", …; with plates, the plate's number comes first, as in "z_2_0".
        A latent is NaN in rows that its mask leaves out. With "encoder", so is a mean that does not exist, as of a Cauchy
        guide; its standard deviation is NaN or infinite. Methods that weigh draws add the column "verdict". It is the worse
        of two: the verdict on log P(x), as in ``log_evidence``, and one from the k-hat of w_k · (z_k − mean)². If a
        posterior has no variance, the second is not "trust".

    Raises:
        TypeError, ValueError: an option, the rows or the model cannot be used. A latent has no mean, because it is a label
            or an angle. Two columns would have one name.

    Example:
        >>> import torch, pyrovae as pv
        >>> embed(pv.VAE.mlp(6, latent_dim=2), torch.ones(4, 6)).columns.tolist()
        ['z_0', 'z_1', 'z_0_sd', 'z_1_sd']
    """
    arguments.choice("method", method, METHODS)
    arguments.boolean("check", check)
    arguments.boolean("progress", progress)
    arguments.integer("num_samples", num_samples, minimum=100)
    if isinstance(model, LatentVariableModel):
        if method == "encoder":
            return _by_encoder(Evaluation.prepare(model, x, num_samples, seed, noise=noise), progress)
        run = sampled.prepare(model, x, method, num_samples, seed, check, noise, progress=progress)
        return _by_weights(run, method)
    if isinstance(model, type) or not hasattr(model, "posterior_moments"):
        raise bad_type(
            "model",
            "a VAE, a LatentVariableModel, or a baseline with continuous latents",
            f"a {type(model).__name__}",
            "Fit PPCA or FactorAnalysis, or wrap a Pyro model and guide: LatentVariableModel(model, guide).",
        )
    mean, spread, index = model.posterior_moments(x)
    return _frame({"z": torch.stack([mean, spread])}, {"z": mean.shape[1:]}, index)


def _by_encoder(evaluation: Evaluation, progress: bool) -> pd.DataFrame:
    """Return the moments of the guide."""
    shapes, closed = _shapes(evaluation)
    if closed:  # the moments given one draw are those of all
        tile = noises.tile_shape(evaluation.structure.widest, 1)
        evaluation = replace(evaluation, num_samples=1, tile=tile)
    found = _empty(shapes, len(evaluation))
    with Progress("embed", len(evaluation), "rows", progress) as bar:
        for block in evaluation.tiles():
            rows, parts = block[0].rows, [_given(evaluation, tile) for tile in block]
            for name in found:
                given = [part[name] for part in parts]
                mean, within = (
                    torch.cat([getattr(g, field) for g in given]) for field in ("mean", "variance")
                )
                between = mean.var(dim=0) if len(mean) > 1 else 0.0
                moments = mean.mean(dim=0), (within.mean(dim=0) + between).sqrt()
                found[name][:, rows] = _stacked(*moments, given[0].lacks)
            bar.advance(rows.stop - rows.start)
    return _frame(found, shapes, evaluation.index)


def _given(evaluation: Evaluation, tile: noises.Tile) -> dict[str, Given]:
    batch = evaluation.part(tile.rows)
    drawn = evaluation.noise(Stream.EMBED, rows=tile.rows, first=tile.samples.start)
    seeded = noises.seeded(drawn.seed, batch["x"].device)

    def fix() -> str:
        return evaluation.pair.fix_of_rows(batch["x"], evaluation.numbers[tile.rows])

    with evaluation.pair.evaluating(), seeded, parameters_hold(evaluation.argument, fix):
        return guide_moments(evaluation.model, batch, tile.num_samples, drawn)[0]


def _by_weights(run: Run, method: str) -> pd.DataFrame:
    """Return the moments of weighted draws; rows without an observed cell have draws of the prior."""
    whole = run.whole
    shapes, _ = _shapes(whole)
    found, tail = _empty(shapes, len(whole)), np.full(len(whole), -np.inf)

    def keep(draws: Draws) -> None:
        numbers = draws.evaluation.numbers[draws.rows].cpu()
        moments, tail[numbers.numpy()] = _weighted(draws)
        for name, each in moments.items():
            found[name][:, numbers] = each

    verdict = np.full(len(whole), "trust", dtype="<U14")
    every = torch.arange(len(whole), device=whole.numbers.device)

    def poor(evidence: LogEvidence) -> np.ndarray:
        return (evidence.ess < _FEWEST_EFFECTIVE) | (verdicts(tail, whole.num_samples) != "trust")

    for _, rows, evidence in sampled.answers(run, method, every, keep, poor):
        numbers = rows.cpu().numpy()
        verdict[numbers] = evidence.verdict
        tail[numbers[evidence.kind == "exact"]] = -np.inf
    for draws in sampled.of_empty_rows(whole):
        keep(draws)
    return _frame(found, shapes, whole.index, worse(verdict, verdicts(tail, whole.num_samples)))


def _weighted(draws: Draws) -> tuple[_Moments, np.ndarray]:
    """Return the moments of a block's weighted draws, and for each row the largest k-hat of w_k · (z_k − mean)².

    Where the posterior's tails leave no variance, the weights of log P(x) may be even; those of the moments are not.
    """
    model, batch = draws.evaluation.model, draws.evaluation.part(draws.rows)
    weights = normalised(draws.log_weights)[..., None]
    one = {name: z[:1] for name, z in draws.latents.items()}
    with undisturbed(draws.evaluation, Stream.EMBED, rows=draws.rows):
        lacks = lacking(model, batch, one)
    found = {}
    tail = torch.full(draws.log_weights.shape[1:], -math.inf, dtype=torch.float64)
    for name, value in draws.latents.items():
        z = model.rows_second(name, value)
        z = z.reshape(*z.shape[:2], -1).double()
        z = torch.where(weights > 0, z, 0.0)  # a draw off the support is NaN and weighs nothing
        mean = (weights * z).sum(dim=0)
        apart = (z - mean).square()
        found[name] = _stacked(mean, (weights * apart).sum(dim=0).sqrt(), lacks[name])
        k = pareto_k((draws.log_weights[..., None] + apart.log()).flatten(1)).view(mean.shape).cpu()
        absent = lacks[name]
        k = k if absent is None else k.masked_fill(absent.cpu(), -math.inf)
        tail = torch.maximum(tail, k.nan_to_num(-math.inf).amax(dim=1))
    return found, tail.numpy()


def _stacked(mean: Tensor, spread: Tensor, lacks: Tensor | None) -> Tensor:
    """Return moments as in ``_Moments``."""
    moments = torch.stack([mean, spread]).cpu()
    return moments if lacks is None else moments.masked_fill(lacks.cpu(), math.nan)


def _shapes(evaluation: Evaluation) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the shape of every latent in one row, and whether one draw tells the moments of Q(z | x).

    Plates of size one have no number in the names of columns, so they are left out.
    """
    model, first = evaluation.model, slice(0, 1)
    batch, plates = evaluation.part(first), evaluation.structure.nesting - 1
    with undisturbed(evaluation, Stream.EMBED, rows=first) as drawn:
        check_have_means(model, batch)
        latents, _ = model.propose(batch, 1, drawn)
        given, _, _ = guide_moments(model, batch, 1, drawn)
    shapes = {name: tuple(model.rows_second(name, z).shape[2:]) for name, z in latents.items()}
    closed = len(given) == 1 and all(each.closed for each in given.values())
    return {
        n: (*(s for s in shape[:plates] if s > 1), *shape[plates:]) for n, shape in shapes.items()
    }, closed


def _empty(shapes: Mapping[str, tuple[int, ...]], num_rows: int) -> _Moments:
    return {
        name: torch.empty(2, num_rows, math.prod(shape), dtype=torch.float64)
        for name, shape in shapes.items()
    }


def _frame(
    found: _Moments, shapes: Mapping[str, tuple[int, ...]], index: Any, verdict: np.ndarray | None = None
) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name, moments in found.items():
        for suffix, values in zip(("", "_sd"), moments, strict=True):
            for place, value in zip(np.ndindex(*shapes[name]), values.T, strict=True):
                column = "_".join([name, *map(str, place)]) + suffix
                if column in columns or (column == "verdict" and verdict is not None):
                    raise bad_value(
                        "model",
                        "latents whose columns have different names",
                        f"two columns {column!r}",
                        f"Rename the site {name!r}.",
                    )
                columns[column] = value.numpy()
    return frame_of(columns if verdict is None else {**columns, "verdict": verdict}, index)
