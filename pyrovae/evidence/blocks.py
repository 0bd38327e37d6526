"""Runs an estimator's work block by block of rows, with progress and checkpoints."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pyrovae import identity
from pyrovae.checkpoints import Answers, Parts, rounding
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.result import Columns
from pyrovae.model import LatentVariableModel
from pyrovae.pair import behaviour, probe
from pyrovae.progress import Progress

#: A folder for finished blocks; None keeps none.
Folder = str | os.PathLike[str] | None


def parts_of(folder: Folder, evaluation: Evaluation, **options: Any) -> Parts | None:
    """Return the store of an evaluation's finished blocks; its key includes the method and its options."""
    if folder is None:
        return None
    pins = {
        **options,
        "num_samples": evaluation.num_samples,
        "seed": evaluation.seed,
        "noise": evaluation.keyed_by,
        "tile": list(evaluation.tile),
        "compile": evaluation.compiles,
        "x": identity.digests(evaluation.batch),
        "parameters": _digest(evaluation.pair),
    }
    return Parts(folder, pins, _answers(evaluation))


def each_block(
    evaluation: Evaluation,
    compute: Callable[[int, slice], Columns],
    bar: Progress,
    parts: Parts | None = None,
) -> Columns:
    """Return the columns of all rows, computed block by block from its number and rows; skip blocks in ``parts``."""
    whole: dict[str, torch.Tensor] = {}
    for number, rows in enumerate(evaluation.blocks()):
        block = vars(kept(parts, number, functools.partial(compute, number, rows)))
        # Copied into one tensor per column: small tensors kept from every block would fragment the memory that
        # the large ones free.
        whole = whole or {name: part.new_empty(len(evaluation)) for name, part in block.items()}
        for name, part in block.items():
            whole[name][rows] = part
        bar.advance(rows.stop - rows.start)
    return Columns(**whole)


def kept(parts: Parts | None, number: int, compute: Callable[[], Columns]) -> Columns:
    """Return a block's columns, from ``parts`` if it holds them."""
    if parts is None:
        return compute()
    return Columns(**parts.keep(number, lambda: vars(compute())))


def _answers(evaluation: Evaluation) -> Answers:
    """Return the pair's log-probabilities on some of the rows, by name, to check a checkpoint against."""
    rows = probe(evaluation.structure, evaluation.batch)
    terms = behaviour(evaluation.model, rows, evaluation.seed)
    return {name: (term, rounding(rows["x"].dtype)) for name, term in terms.items()}


def _digest(pair: LatentVariableModel) -> str:
    """Return a sha256 of every parameter and buffer, including modules that plain functions refer to."""
    digest = hashlib.sha256()
    for module in pair.every_module():
        held: Iterable[tuple[str, torch.Tensor | None]] = [
            *module._parameters.items(),
            *module._buffers.items(),
        ]
        for name, tensor in held:
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
