"""Counts of molecules in single cells."""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

import torch

from pyrovae import arguments
from pyrovae.datasets.sources import contents
from pyrovae.datasets.splits import Split, generator_of, split
from pyrovae.refusals import bad_value


class CellCounts(NamedTuple):
    """Counts of molecules in each cell.

    Attributes:
        counts: molecules of the chosen genes, (cells, genes), whole numbers as float32, a mass.
        others: molecules of all other genes, (cells,), float32, which measure the sequencing depth. Their
            logarithm is an offset that does not use any scored column.
        labels: the cell's line, (cells,), int64, an index into ``cell_lines``.
        genes: Ensembl names of the columns.
        cell_lines: names of the lines.
    """

    counts: Split
    others: Split
    labels: Split
    genes: tuple[str, ...]
    cell_lines: tuple[str, ...]


def cell_counts(num_genes: int = 500, seed: int = 0, download: bool = True) -> CellCounts:
    """Return counts of molecules in 274 single cells of three lines by CEL-seq2; 174, 50 and 50 cells.

    The columns are the ``num_genes`` genes whose log(1 + count) has the highest variance over the training
    rows, highest first. Test rows do not affect the choice. Spike-ins (ERCC) are not genes and are left out.
    All cells are kept. demuxlet calls 34 of them doublets; their label is the best single line.

    Args:
        num_genes: how many of the 28 142 genes are columns; the others are counted in ``others``.
        seed: of the split into rows. The default is fixed, because the seed changes the numbers.
        download: download missing files; False raises ``FileNotFoundError`` instead.

    Raises:
        FileNotFoundError: a file is missing and cannot be downloaded.
        ValueError: a file has other contents, or there are not so many genes.

    Tian et al. (2019); Hashimshony et al. (2016) for CEL-seq2; Kang et al. (2018) for demuxlet.
    """
    import pandas as pd

    arguments.boolean("download", download)
    arguments.integer("seed", seed, minimum=0)
    arguments.integer("num_genes", num_genes)
    # The header has one name fewer than a line has fields, because the row names have no header.
    table, cells = (
        pd.read_csv(io.BytesIO(contents(f"cell_counts {part}", download).tobytes()), index_col=0)
        for part in ("counts", "cells")
    )
    table = table[~table.index.str.startswith("ERCC-")]
    if num_genes >= len(table):
        raise bad_value(
            "num_genes",
            f"fewer than all {len(table)} genes",
            str(num_genes),
            "Leave some genes for the offset, others.",
        )
    counts = torch.tensor(table.to_numpy().T)  # (cells, genes)
    names = cells.loc[table.columns, "cell_line_demuxlet"]
    cell_lines = tuple(sorted(names.unique()))
    labels = torch.tensor([cell_lines.index(name) for name in names])

    parts = functools.partial(split, validation=50, test=50)
    order = torch.randperm(len(counts), generator=generator_of(seed))
    counts = counts[order]
    variance = parts(counts).train.double().log1p().var(dim=0)
    chosen = variance.argsort(descending=True, stable=True)[:num_genes]
    others = counts.sum(dim=1) - counts[:, chosen].sum(dim=1)
    return CellCounts(
        parts(counts[:, chosen].float()),
        parts(others.float()),
        parts(labels[order]),
        tuple(table.index[chosen.numpy()]),
        cell_lines,
    )
