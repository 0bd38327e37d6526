"""The frame that ``compare`` returns. It prints its main columns only. Imported late, because it needs pandas."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pyrovae import pages


class ComparisonTable(pd.DataFrame):
    """A DataFrame that prints its main columns: in a terminal, in a notebook, and as LaTeX.

    Slices, copies and other results computed from it are plain DataFrames with every column.
    """

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def short(self) -> pd.DataFrame:
        """Return the main columns as text, with errors beside their numbers and the rows by verdict in one column."""
        shown = pd.DataFrame(index=self.index)
        shown["elpd"] = [
            f"{'≥ ' if 'lower bound' in kind else ''}{value:.2f} ± {error:.2f}"
            for kind, value, error in zip(self["kind"], self["elpd"], self["se"], strict=True)
        ]
        best = (self["elpd_diff"] == 0) & (self["dse"] == 0)
        shown["to the best"] = [
            "best" if first else f"{difference:.2f} ± {error:.2f}{', open' if left else ''}"
            for first, left, difference, error in zip(
                best, self["open"], self["elpd_diff"], self["dse"], strict=True
            )
        ]
        if "bits_per_dim" in self:
            shown["bits/dim"] = [f"{bits:.3f}" for bits in self["bits_per_dim"]]
        shown["weight"] = [f"{weight:.2f}" for weight in self["weight"]]
        shown["MC error"] = ["exact" if error == 0 else f"{error:.3f}" for error in self["mcse"]]
        names, labels = ["trust", "more samples", "another method"], "trust/more/other"
        if (self["unchecked"] > 0).any():
            names, labels = [*names, "unchecked"], f"{labels}/un."
        verdicts = self[names].to_numpy()
        if "seen" in self and (self["seen"] > 0).any():
            shown["fitted to"] = [f"{seen} rows" if seen else "" for seen in self["seen"]]
        if (self["given"] != "").any():
            shown["given"] = self["given"]
        shown[labels] = ["/".join(map(str, counts)) for counts in verdicts]
        shown["check"] = self["check"]
        return shown

    def about(self) -> str:
        """Return what the numbers measure: masses or densities, and over how many rows."""
        return f"{self.attrs.get('measure', '')}, nats a row over {self.attrs.get('rows', '?')} rows"

    def __repr__(self) -> str:
        return f"{self.about()}\n{self.short().to_string()}"

    def _repr_html_(self) -> str:
        return pages.summary(self.about(), [], pages.Grid.of(self.short(), most=len(self)))

    def to_latex(self, *args: Any, **kwargs: Any) -> str:
        """Return LaTeX with the same columns as in print; ``DataFrame(table).to_latex()`` has all columns."""
        shown = self.short().rename(columns=str)
        body = shown.to_latex(*args, **kwargs)
        for sign, command in (("≥", r"$\geq$"), ("≤", r"$\leq$"), ("±", r"$\pm$")):
            body = body.replace(sign, command)
        return body
