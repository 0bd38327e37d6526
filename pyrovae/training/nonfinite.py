"""Explains a NaN or infinite loss or gradient: the likely parameter, term or row, and how to fix it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae import noise
from pyrovae.pair import Batch, RowModel
from pyrovae.refusals import first_line, refusal


def is_nonfinite(error: Exception) -> bool:
    """Return whether an error reports such values, including torch's error for parameters off their constraint."""
    return isinstance(error, FloatingPointError) or "satisfy the constraint" in str(error)


def message(
    error: Exception,
    place: str,
    model: RowModel,
    batch: Batch,
    rows: Tensor,
    seed: int,
) -> str:
    """Return the message to stop a fit with.

    Args:
        error: the error that the step raised, after which parameters, buffers and moments are as before it.
        place: the epoch and step, in words.
        model: the pair, and what inspection found.
        batch: the step's minibatch.
        rows: the row numbers in x, shape (batch,).
        seed: of the step's noise.
    """
    shown = ", ".join(str(int(row)) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    # Pyro's own error is a page long.
    reason = first_line(error)
    cause, fix = _likely_cause(model, batch, rows, seed)
    return refusal(
        "x",
        "a finite loss and gradient",
        f"{reason} at {place}, rows {shown}; likely cause: {cause}",
        f'The parameters are as before that step. {fix} on_nonfinite="skip" leaves such steps out and counts them.',
    )


def _likely_cause(model: RowModel, batch: Batch, rows: Tensor, seed: int) -> tuple[str, str]:
    """Return the likely cause and its fix, from the parameters or one fresh draw of z for every row."""
    for name, parameter in model.pair.named_parameters():
        if count := int((~torch.isfinite(parameter)).sum()):
            return (
                f"parameter {name} had {count} NaN or infinite entries before the step",
                "Start from finite parameters: build a new model or load one that was saved earlier.",
            )
    scales = f"{model.pair.fix_of_scales(batch['x'])} ".lstrip()
    bad, term = _bad_rows(model, batch, seed)
    if not len(bad):
        return (
            "an extreme draw of z, or a gradient that overflows although the loss does not",
            f"{scales}Otherwise lower lr or set clip_norm." if scales else "Lower lr or set clip_norm.",
        )
    first = int(bad[0])
    size = float(batch["x"][first].abs().max())
    return (
        f"{term} in {len(bad)} of these rows, first row {int(rows[first])}, whose largest entry is {size:.3g}",
        f"{scales}{'Look at that row; otherwise l' if 2 * len(bad) < len(rows) else 'L'}ower lr or set clip_norm.",
    )


def _bad_rows(model: RowModel, batch: Batch, seed: int) -> tuple[list[int], str]:
    """Return the rows of the minibatch with a non-finite term of the loss, and the name of that term."""
    try:
        terms = _terms(model, batch, seed)
    except ValueError:  # some row's parameters are invalid, and the error does not say which row's
        bad = [i for i in range(len(batch["x"])) if _is_refused(model, batch, i, seed)]
        return bad, "the network outputs are invalid parameters of a distribution"
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
    """Return the terms of the ELBO for one draw of z a row, each of shape (batch,)."""
    with model.pair.evaluating(), noise.seeded(seed, batch["x"].device):
        latents, log_q = model.propose(batch, 1)
        joint = model.log_joint(batch, latents)
    return {"log Q(z | x)": log_q[0], "log P(z)": joint.prior[0], "log P(x | z)": joint.likelihood[0]}
