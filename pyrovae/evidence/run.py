"""Runs an estimator: prepares rows and pair, computes block by block of rows, shows progress, keeps what is finished."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, identity
from pyrovae.checkpoints import Answers, Parts, rounding
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.check import judged_by_check
from pyrovae.evidence.posterior import total, undisturbed
from pyrovae.evidence.reach import reach_block, reach_blocks
from pyrovae.evidence.result import Columns, LogEvidence, judge, verdicts
from pyrovae.evidence.workers import Make, Pool, computed
from pyrovae.noise import Stream
from pyrovae.pair import Batch, Latents, behaviour, parameters_digest, probe
from pyrovae.progress import Progress
from pyrovae.rows import Source
from pyrovae.sparse import chosen

_COARSE = "log P(x, z) rounds by more than 0.05 nats in float32: pass pair.double()"
_DRAWS, _STEP, _ROUGH = 4, 1e-5, 0.1  # draws of z, the step, and the second difference in nats

#: Arguments of estimators that a row's draws depend on, beside the seed.
_OF_DRAWS = ("num_samples", "tile", "compile", "noise")
#: The other arguments that estimators share.
_OF_RUNS = ("pair", "x", "seed", "progress", "checkpoint", "check", "executor")

#: A folder for finished blocks; None keeps none.
Folder = str | os.PathLike[str] | None
#: Returns the columns of one block, from its number and its rows.
BlockFunction = Callable[[int, slice], Columns]


@dataclass(frozen=True)
class Run:
    """One call of an estimator.

    An estimator is a function of one block of rows, which returns the block's ``Columns``. ``Run`` does the rest. It
    checks rows, pair and options, and calls the function for every block, here or in the executor's workers. It
    shows progress, keeps finished blocks in the checkpoint's folder, tries the estimator on simulated rows, and
    builds the ``LogEvidence``. ``importance`` documents the options.

    Attributes:
        estimator: the function that the user called.
        options: its arguments that the numbers depend on, except the seed.
        evaluation: the checked rows that have an observed cell, with pair, noise and tiles.
        whole: all checked rows. One without an observed cell has log P = 0 and needs no estimator.
        progress: whether to show it.
        parts: the folder's finished blocks; None keeps none.
        check: whether to try the estimator on rows simulated from the model.
        pool: the workers that compute blocks; None computes them here.
    """

    estimator: Callable[..., LogEvidence]
    options: Mapping[str, Any]
    evaluation: Evaluation
    whole: Evaluation
    progress: bool
    parts: Parts | None
    check: bool
    pool: Pool | None

    @classmethod
    def prepare(cls, estimator: Callable[..., LogEvidence], given: Mapping[str, Any], **fixed: Any) -> Run:
        """Return a run.

        Args:
            estimator: the function that the user called.
            given: its arguments by name, such as ``locals()`` before any assignment; those that are left out have their
                defaults.
            fixed: arguments of the evaluation that the user of this estimator does not choose.

        Raises:
            TypeError, ValueError: an option, the rows or the pair cannot be used.
        """
        bound = inspect.signature(estimator).bind(**given)
        bound.apply_defaults()
        taken = bound.arguments
        every = {"progress": False, "checkpoint": None, "executor": None} | taken | fixed
        own = {name: value for name, value in taken.items() if name not in (*_OF_DRAWS, *_OF_RUNS)}
        arguments.boolean("progress", every["progress"])
        arguments.boolean("check", every["check"])
        pool = None if every["executor"] is None else Pool(every["executor"])
        draws = {name: every[name] for name in _OF_DRAWS}
        whole, parts = Evaluation.prepare(every["pair"], every["x"], seed=every["seed"], **draws), None
        if every["checkpoint"] is not None:
            parts = _parts(every["checkpoint"], whole, method=estimator.__name__, **own)
            whole = replace(whole, threads=parts.threads)
        options = own | {name: value for name, value in draws.items() if name in taken}
        part = _of_cells(whole)
        return cls(estimator, options, part, whole, every["progress"], parts, every["check"], pool)

    def by(self, estimator: Callable[..., LogEvidence], **options: Any) -> Run:
        """Return the run of another estimator with the same draws a row; ``options`` are the estimator's own."""
        common = {name: self.options[name] for name in _OF_DRAWS}
        return replace(self, estimator=estimator, options=options | common, parts=None)

    def only(self, rows: Tensor) -> Run:
        """Return the run of some of the rows, each with the noise that it has among all; it has no checkpoint."""
        whole, source = self.whole.of_rows(rows, self.whole.seed, self.whole.num_samples), self.whole.source
        if source is not None:
            place = rows.to(source.exact.device)
            observed = None if source.observed is None else source.observed[place]
            index = None if source.index is None else source.index[rows.cpu().numpy()]
            exact = chosen(source.exact, place)
            whole = replace(whole, source=Source(exact, source.names, index, observed))
        return replace(self, evaluation=_of_cells(whole), whole=whole, parts=None)

    def bar(self) -> Progress:
        """Return the progress over the rows, a context manager."""
        return Progress("log P(x)", len(self.evaluation), "rows", self.progress)

    def columns(self, make: Callable[[Evaluation], BlockFunction]) -> Columns:
        """Return the columns of all rows; the function that ``make`` returns is called for blocks that the checkpoint lacks.

        Workers call ``make`` for the rows of a task. It is a function of a module, or a ``functools.partial`` of one.
        """
        blocks, make = self.evaluation.blocks(), functools.partial(_by_name, make)
        with self.bar() as bar:
            found = computed(self.evaluation, blocks, make, self.parts, self.pool)
            return Columns(**_joined(self.evaluation, found, bar))

    def unreached(self) -> Tensor:
        """Return which rows have a posterior beyond the guide, (rows,); see ``reach.unreached``."""
        return self._finding("rows", reach_blocks(self.evaluation), reach_block)

    def _coarse(self) -> Tensor:
        """Return in which rows log P(x_n, z) in float32 is rough on steps of z that hardly bend a smooth function, (rows,)."""
        known = (self.evaluation.pair.coarsest or self.evaluation.dtype) != torch.float32
        return self._finding("coarse", [] if known else self.evaluation.blocks(_DRAWS), coarse_block)

    def _finding(self, name: str, blocks: list[slice], make: Make) -> Tensor:
        """Return one of the values that a function of blocks returns; False for all rows if there are no blocks."""
        if not blocks:
            return torch.zeros(
                len(self.evaluation), dtype=torch.bool, device=self.evaluation.batch["x"].device
            )
        return _joined(self.evaluation, computed(self.evaluation, blocks, make, pool=self.pool))[name]

    def answer(
        self,
        columns: Columns,
        kind: str | np.ndarray,
        findings: Mapping[str, Tensor] | None = None,
        verdict: np.ndarray | None = None,
        **fields: Any,
    ) -> LogEvidence:
        """Return the result of columns.

        Args:
            columns: of all rows.
            kind: the kind of the estimates, one word or one per row.
            findings: for each reason, which rows are not to be trusted; boolean, shape (rows,).
            verdict: by row; None judges by k-hat and the number of draws.
            fields: further fields of ``LogEvidence``.
        """
        if verdict is None:
            fields = {"num_samples": self.evaluation.num_samples} | fields
            verdict = verdicts(columns.pareto_k.cpu().numpy(), self.evaluation.num_samples)
        findings = {_COARSE: self._coarse(), **(findings or {})}
        rows = _with_cells(self.whole.batch)
        if rows is not None:
            columns, kind, verdict, findings, fields = self._with_empty(
                rows, columns, kind, verdict, findings, fields
            )
        verdict, reasons = judge(verdict, columns, findings)
        found = LogEvidence.of(
            columns,
            self.whole,
            method=self.estimator.__name__,
            kind=kind,
            verdict=verdict,
            reasons=reasons,
            **fields,
        )
        if self.evaluation.simulated is not None:
            return found
        exact = found.kind == "exact"
        drawn = np.where(exact, "exact", verdict)
        tried = self.estimator if self.check else None
        drawn, check = judged_by_check(drawn, self.evaluation, tried, self.options)
        return replace(found, verdict=np.where(exact, verdict, drawn), check=check)

    def _with_empty(
        self,
        rows: Tensor,
        columns: Columns,
        kind: str | np.ndarray,
        verdict: np.ndarray,
        findings: Mapping[str, Tensor],
        fields: dict[str, Any],
    ) -> tuple[Columns, np.ndarray, np.ndarray, dict[str, Tensor], dict[str, Any]]:
        """Return the arguments of ``answer`` for all rows, from those of ``rows``, which have an observed cell.

        log P of no cell is 0: exact, without an error, a cost or a draw.
        """
        count = len(self.whole)
        # False for the row that stands for none
        cells = self.whole.batch["observed"].reshape(count, -1).any(dim=1)[rows]
        zero = torch.zeros(count, dtype=torch.float64, device=rows.device)
        empty = replace(Columns.without_draws(zero, zero, zero), log_odds=zero - math.inf)

        def all_rows(known: Tensor, given: Tensor) -> Tensor:
            return known.index_put((rows[cells],), given.to(known)[cells])

        def all_words(word: str, given: str | np.ndarray) -> np.ndarray:
            given = np.broadcast_to(np.asarray(given), len(rows))
            found = np.full(count, word, dtype=np.result_type(given, np.array(word)))
            found[rows[cells].cpu().numpy()] = given[cells.cpu().numpy()]
            return found

        filled = Columns(
            **{name: all_rows(known, getattr(columns, name)) for name, known in vars(empty).items()}
        )
        flags = {name: all_rows(zero.bool(), each) for name, each in findings.items()}
        answered = fields.get("answered_by", self.estimator.__name__)
        fields = {**fields, "answered_by": all_words("exact", answered)}
        return filled, all_words("exact", kind), all_words("trust", verdict), flags, fields


def _with_cells(batch: Batch) -> Tensor | None:
    """Return the numbers of the rows that have an observed cell, or the first row if none has; None if all have."""
    if "observed" not in batch:
        return None
    cells = batch["observed"].reshape(len(batch["x"]), -1).any(dim=1)
    if bool(cells.all()):
        return None
    rows = cells.nonzero()[:, 0]
    return rows if len(rows) else rows.new_zeros(1)


def _of_cells(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation of the rows of ``_with_cells``."""
    rows = _with_cells(evaluation.batch)
    return evaluation if rows is None else evaluation.of_rows(rows, evaluation.seed, evaluation.num_samples)


def coarse_block(evaluation: Evaluation) -> Callable[[int, slice], dict[str, Tensor]]:
    """Return the function of a block that tells where log P(x_n, z) in float32 is rough; see ``Run``."""
    model = evaluation.model

    def rough(number: int, rows: slice) -> dict[str, Tensor]:
        batch = evaluation.part(rows)
        with undisturbed(evaluation, Stream.ROUNDING, rows=rows) as drawn:
            latents, _ = model.propose(batch, _DRAWS, drawn)
            below, at, above = (total(model.log_joint(batch, _moved(latents, sign))) for sign in (-1, 0, 1))
        bend = (below + above - 2 * at).abs().nan_to_num(0.0, 0.0, 0.0)
        return {"coarse": bend.median(dim=0).values > _ROUGH}

    return rough


def _moved(latents: Latents, sign: int) -> Latents:
    """Return real latents a small step away; labels and counts stay."""
    return {
        name: z + sign * _STEP * (1 + z.abs()) * (z != z.round()) if z.is_floating_point() else z
        for name, z in latents.items()
    }


def each_block(evaluation: Evaluation, compute: BlockFunction) -> Columns:
    """Return the columns of all rows, computed here, block by block."""
    found = ((rows, vars(compute(number, rows))) for number, rows in enumerate(evaluation.blocks()))
    return Columns(**_joined(evaluation, found))


def _by_name(make: Callable[[Evaluation], BlockFunction], evaluation: Evaluation) -> Any:
    """Return the function of a block that returns its columns by name, as checkpoints keep them."""
    compute = make(evaluation)
    return lambda number, rows: vars(compute(number, rows))


def _joined(
    evaluation: Evaluation, found: Iterable[tuple[slice, Mapping[str, Tensor]]], bar: Progress | None = None
) -> dict[str, Tensor]:
    """Return the columns of all rows by name, from those of blocks in any order."""
    whole: dict[str, Tensor] = {}
    for rows, block in found:
        # Copied into one tensor per column: small tensors kept from every block would fragment the memory that
        # the large ones free.
        whole = whole or {name: part.new_empty(len(evaluation)) for name, part in block.items()}
        for name, part in block.items():
            whole[name][rows] = part
        if bar is not None:
            bar.advance(rows.stop - rows.start)
    return whole


def _parts(folder: str | os.PathLike[str], evaluation: Evaluation, **options: Any) -> Parts:
    """Return the store of an evaluation's finished blocks; its key includes the method and its options."""
    pins = {
        **options,
        "num_samples": evaluation.num_samples,
        "seed": evaluation.seed,
        "noise": evaluation.keyed_by,
        "tile": list(evaluation.tile),
        "compile": evaluation.compiles,
        "x": identity.digests(evaluation.batch),
        "parameters": parameters_digest(evaluation.pair),
    }
    return Parts(folder, pins, _answers(evaluation), evaluation.threads)


def _answers(evaluation: Evaluation) -> Answers:
    """Return the pair's log-probabilities on some of the rows, by name, to check a checkpoint against."""
    rows = probe(evaluation.structure, evaluation.batch)
    terms = behaviour(evaluation.model, rows, evaluation.seed)
    return {name: (term, rounding(rows["x"].dtype)) for name, term in terms.items()}
