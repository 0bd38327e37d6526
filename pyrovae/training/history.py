"""History: the losses and evaluations of a fit, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class History:
    """The losses and evaluations of a fit, epoch by epoch.

    Attributes:
        records: one dict an epoch; see ``frame``.
        stopped: "epochs" (all done), "patience" (validation ELBO did not improve), "callback" or "interrupted".
        best_epoch: the epoch whose weights the model has, if ``patience`` restored them.
        steps: how steps ran: "eager" if all did or if the trace was given up in some epoch, else "traced" or "compiled" as
            most did. A reason follows unless the fit was just too short for a faster way to save time.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    stopped: str = "epochs"
    best_epoch: int | None = None
    steps: str = "eager"

    @property
    def way(self) -> str:
        """Return the first word of ``steps``."""
        return self.steps.partition(":")[0]

    @property
    def frame(self) -> pd.DataFrame:
        """One line per epoch: epoch, loss, elbo, rate, reconstruction, kl_weight, lr, skipped, seconds; in nats a row.

        ``loss``, ``elbo``, ``rate`` and ``reconstruction`` are means over the epoch's steps, in training mode, while the
        parameters changed. A step's loss is the objective: weight · rate − reconstruction, with the KL weight of that step.
        ``lr`` is that of the epoch's first step, for the optimizer's first group of parameters.
        ``kl_weight`` is the weight of the epoch's last step. After the warm-up, the columns satisfy loss = kl_weight · rate
        − reconstruction. During the warm-up they do so only if an epoch is one step. ``elbo`` = reconstruction − rate
        leaves out the KL weight.

        The terms of a ``RenyiELBO`` do not add up. With it, or with a subclass of your own, ``elbo`` and its parts are
        evaluated on the training rows after the epoch. In float32, ``rate`` and ``elbo`` of steps with a small KL weight
        have a rounding error of about 1e-7 · |loss| / kl_weight.

        With validation rows, the frame also has ``validation_elbo``, ``validation_rate`` and
        ``validation_reconstruction``, evaluated after the epoch. ``skipped`` counts the steps that were not finite and
        that ``on_nonfinite="skip"`` left out. The means leave them out, too. Validation columns are NaN if rows have
        no finite ELBO.
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
