"""Rows, block by block: what every estimator does around its own work on one block."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pyrovae import checks
from pyrovae.checkpoints import Answers, Parts, rounding
from pyrovae.evidence.result import Columns
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.pair import behaviour, probe
from pyrovae.progress import Progress

#: A folder for finished blocks, or None.
Folder = str | os.PathLike[str] | None


def parts_of(folder: Folder, evaluation: Evaluation, **options: Any) -> Parts | None:
    """Where finished blocks of an evaluation are kept; its method and options are among what they depend on."""
    if folder is None:
        return None
    pins = {
        **options,
        "num_samples": evaluation.num_samples,
        "seed": evaluation.seed,
        "noise": evaluation.keyed_by,
        "tile": list(evaluation.tile),
        "compile": evaluation.compiles,
        "x": checks.digests(evaluation.batch),
        "parameters": _digest(evaluation.pair),
    }
    return Parts(folder, pins, _answers(evaluation))


def each_block(
    evaluation: Evaluation,
    compute: Callable[[int, slice], Columns],
    bar: Progress,
    parts: Parts | None = None,
) -> Columns:
    """The columns of every block of rows, from its number and rows; those that ``parts`` holds are not computed again."""
    whole: dict[str, torch.Tensor] = {}
    for number, rows in enumerate(evaluation.blocks()):
        block = vars(kept(parts, number, functools.partial(compute, number, rows)))
        # Into one piece of memory each: small pieces kept from every block would end up between the large ones
        # that are freed, and hold on to their memory.
        whole = whole or {name: part.new_empty(len(evaluation)) for name, part in block.items()}
        for name, part in block.items():
            whole[name][rows] = part
        bar.advance(rows.stop - rows.start)
    return Columns(**whole)


def kept(parts: Parts | None, number: int, compute: Callable[[], Columns]) -> Columns:
    """A block's columns, computed once."""
    if parts is None:
        return compute()
    return Columns(**parts.keep(number, lambda: vars(compute())))


def _answers(evaluation: Evaluation) -> Answers:
    """What the pair computes on some of the rows, by name."""
    rows = probe(evaluation.structure, evaluation.batch)
    terms = behaviour(evaluation.model, rows, evaluation.seed)
    return {name: (term, rounding(rows["x"].dtype)) for name, term in terms.items()}


def _digest(pair: LatentVariableModel) -> str:
    """sha256 of every parameter and buffer, those of modules that plain functions refer to as well."""
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
