"""Why a loss or gradient came out NaN or infinite: which parameter, term or row is the likely cause, and the mend."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.pair import Batch, RowModel


def is_nonfinite(error: Exception) -> bool:
    """Whether an error of a step says so: torch refuses parameters of a distribution that ran off before the loss is."""
    return isinstance(error, FloatingPointError) or "satisfy the constraint" in str(error)


def refusal(
    error: Exception,
    place: str,
    model: RowModel,
    batch: Batch,
    rows: Tensor,
    seed: int,
) -> str:
    """The message to stop a fit with.

    Args:
        error: what the step raised; afterwards everything is as before it.
        place: the epoch and step, in words.
        model: the pair, and what inspection found.
        batch: the step's minibatch.
        rows: the numbers of its rows in x, shape (batch,).
        seed: of the step's noise.
    """
    shown = ", ".join(str(int(row)) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    # Pyro's own error goes on for a page.
    reason = str(error).splitlines()[0].removesuffix(", but found invalid values:")
    cause, mend = _likely_cause(model, batch, rows, seed)
    return checks.refusal(
        "x",
        "a finite loss and gradient",
        f"{reason} at {place}, rows {shown}; likely cause: {cause}",
        f'The parameters are as before that step. {mend} on_nonfinite="skip" leaves such steps out and counts them.',
    )


def _likely_cause(model: RowModel, batch: Batch, rows: Tensor, seed: int) -> tuple[str, str]:
    """What the parameters, or one fresh draw of z for every row of the minibatch, give away; and what to try."""
    for name, parameter in model.pair.named_parameters():
        if count := int((~torch.isfinite(parameter)).sum()):
            return (
                f"parameter {name} has {count} entries that were NaN or infinite before it",
                "Start from finite parameters: build the model anew or load one that was saved earlier.",
            )
    scales = f"{model.pair.fix_of_scales(batch['x'])} ".lstrip()
    bad, term = _bad_rows(model, batch, seed)
    if not len(bad):
        return (
            "an extreme draw of z, or a gradient that overflows where the loss itself does not",
            f"{scales}Else lower lr or set clip_norm." if scales else "Lower lr or set clip_norm.",
        )
    first = int(bad[0])
    size = float(batch["x"][first].abs().max())
    return (
        f"{term} in {len(bad)} of these rows, first row {int(rows[first])}, whose largest entry is {size:.3g}",
        f"{scales}{'Look at that row; else l' if 2 * len(bad) < len(rows) else 'L'}ower lr or set clip_norm.",
    )


def _bad_rows(model: RowModel, batch: Batch, seed: int) -> tuple[list[int], str]:
    """The rows of the minibatch at which a term of the loss is not finite, and which term that is."""
    try:
        terms = _terms(model, batch, seed)
    except ValueError:  # a distribution refused its parameters: for some row, and for all of them together
        bad = [i for i in range(len(batch["x"])) if _is_refused(model, batch, i, seed)]
        return bad, "the networks put out values that no distribution takes"
    for name, term in terms.items():
        bad = torch.nonzero(~torch.isfinite(term)).flatten().tolist()
        if bad:
            return bad, f"{name} is {float(term[bad[0]]):g}"
    return [], ""


def _is_refused(model: RowModel, batch: Batch, row: int, seed: int) -> bool:
    try:
        _terms(model, {name: value[row : row + 1] for name, value in batch.items()}, seed)
    except ValueError:
        return True
    return False


def _terms(model: RowModel, batch: Batch, seed: int) -> dict[str, Tensor]:
    """The terms of the ELBO for one draw of z a row, each of shape (batch,)."""
    with model.pair.evaluating(), noise.seeded(seed, batch["x"].device):
        latents, log_q = model.propose(batch, 1)
        joint = model.log_joint(batch, latents)
    return {"log Q(z | x)": log_q[0], "log P(z)": joint.prior[0], "log P(x | z)": joint.likelihood[0]}
