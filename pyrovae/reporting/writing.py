"""report(): the arguments, the page and the file."""

from __future__ import annotations

import os
from typing import Any

from pyrovae import arguments, pages
from pyrovae.evidence import METHODS
from pyrovae.model import LatentVariableModel
from pyrovae.refusals import bad_type, shown
from pyrovae.reporting.contents import Contents
from pyrovae.reporting.sections import sections
from pyrovae.storage import replacing
from pyrovae.turns import takes_turns

_TITLE = "Report on a model of rows"


@takes_turns
def report(
    model: LatentVariableModel,
    x: Any,
    path: str | os.PathLike[str],
    *,
    train: Any = None,
    color: Any = None,
    image_shape: tuple[int, int] | None = None,
    method: str = "auto",
    num_rows: int = 500,
    seed: int = 0,
    title: str = _TITLE,
    command: str | None = None,
    progress: bool = False,
) -> None:
    """Write one HTML file on a model and rows, which needs no network and no other file.

    It holds the data, their families, the training curves, log P(x) with its interval and verdicts, and the check of the
    method on the model. It compares the model with two baselines, and simulated rows with the data, column by column. It
    shows the latent space, reconstructions or completed cells, and the least likely rows with their odd cells. It holds
    the diagnosis in words, versions, seeds and hashes. A part that the model does not allow says why. The same arguments,
    files and versions give the same bytes.

    ``report`` fits the baselines, to rows that it does not score. Rows of real numbers get independent Gaussians and
    PPCA. Binary rows get independent Bernoullis and a mixture of them. Labels get latent classes. Counts get
    independent Poissons and negative binomials. A table gets independent columns of its families, and its VAE with a
    linear decoder.

    Args:
        model: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0, in any form that ``log_evidence`` takes, preferably held out.
        path: of the file, whose folder has to exist. The finished report replaces it in one step.
        train: rows to fit the baselines to, none of them in ``x``. None fits the baselines to at least half
            of ``x``, and compares them on the other rows.
        color: a label or a number for each row, which colours the latent space; see ``plots.latent``.
        image_shape: (height, width) of rows that are images.
        method: of ``log_evidence``.
        num_rows: the most rows that are scored. If x has more, ``num_rows`` of them are drawn at random.
        seed: of all noise.
        title: of the page.
        command: the command to show for repeating the report; None shows the call of this function.
        progress: show bars, or plain lines if there is no terminal: of the scores, and of the report's sections. A report
            takes about a minute.

    Raises:
        TypeError, ValueError: an argument, the rows or the model cannot be used; ``train`` holds rows of ``x``.
        OSError: the file cannot be written. Nothing is computed if its folder is missing or it is a folder.

    Example:
        >>> import pathlib, tempfile, torch, pyrovae as pv
        >>> x = (torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "report.html")
        ...     report(pv.VAE.mlp(3, 1), x, path, method="importance")
        ...     path.read_text(encoding="utf-8").splitlines()[0]
        '<!DOCTYPE html>'
    """
    target = arguments.path("path", path)
    arguments.choice("method", method, tuple(name for name in METHODS if name != "exact"))
    arguments.integer("num_rows", num_rows, minimum=2)
    arguments.integer("seed", seed, minimum=0)
    arguments.boolean("progress", progress)
    for name, text in (("title", title), ("command", "" if command is None else command)):
        if not isinstance(text, str):
            raise bad_type(name, "a string", shown(text), "Pass one, or leave it out.")
    call = command or _call(path, train, color, image_shape, method, num_rows, seed, title)
    with replacing(target, "a file to write the report to") as file:
        found = Contents(model, x, train, color, image_shape, method, num_rows, seed, progress)
        parts = sections(found, call, progress)
        page = pages.render("report.html", title=title, report=found, sections=parts)
        file.write(page.encode(errors="replace"))  # half of a surrogate pair has no UTF-8


def _call(
    path: Any, train: Any, color: Any, image_shape: Any, method: str, num_rows: int, seed: int, title: str
) -> str:
    """Return the call of ``report`` that makes the same page."""
    named = {"train": train, "color": color}
    given = [f"{name}={name}" for name, value in named.items() if value is not None]
    plain = {"image_shape": image_shape, "method": method, "num_rows": num_rows, "seed": seed, "title": title}
    usual = {"image_shape": None, "title": _TITLE}
    given += [f"{name}={value!r}" for name, value in plain.items() if usual.get(name, ...) != value]
    return f"pyrovae.report({', '.join(['model', 'x', repr(os.fspath(path)), *given])})"
