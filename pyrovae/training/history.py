"""What a fit did, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class History:
    """What a fit did, epoch by epoch.

    Attributes:
        records: one dict an epoch; see ``frame``.
        stopped: "epochs" (all done), "patience" (no better on the validation rows) or "interrupted".
        best_epoch: the epoch whose weights the model now has, where ``patience`` restored them.
        steps: how most of them were taken: "eager", "traced" or "compiled"; with why, where that is for another
            reason than that the fit is too short for more to pay.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    stopped: str = "epochs"
    best_epoch: int | None = None
    steps: str = "eager"

    @property
    def way(self) -> str:
        """The first word of ``steps``."""
        return self.steps.partition(":")[0]

    @property
    def frame(self) -> pd.DataFrame:
        """A line an epoch: epoch, loss, elbo, rate, reconstruction, kl_weight, lr, skipped, seconds; in nats a row.

        ``loss`` is the objective averaged over the epoch's steps, while the parameters moved; ``elbo`` =
        ``reconstruction`` − ``rate`` is evaluated after it, without KL weight, whatever the objective, on 10 000 of
        the rows, always the same, where there are more.
        With validation rows, the same three again as ``validation_…``. ``skipped`` counts the epoch's steps that
        were not finite and, under ``on_nonfinite="skip"``, not taken; ``loss`` leaves them out,
        and ``elbo`` is NaN where rows have none.
        """
        import pandas as pd

        columns = ["epoch", "loss", "elbo", "rate", "reconstruction", "kl_weight", "lr", "skipped", "seconds"]
        return pd.DataFrame(self.records, columns=None if self.records else columns)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        if not self.records:
            return f"History(0 epochs, {self.stopped})"
        last = self.records[-1]
        best = f", best epoch {self.best_epoch}" if self.best_epoch else ""
        skipped = sum(int(record["skipped"]) for record in self.records)
        best += f", {skipped} steps skipped" if skipped else ""
        return (
            f"History({len(self)} epochs, {self.way} steps, ELBO {last['elbo']:.2f} nats a row, "
            f"stopped: {self.stopped}{best})"
        )
