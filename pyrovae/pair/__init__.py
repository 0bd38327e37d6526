"""What a Pyro model and guide can be asked, row by row: propose z, and the log joint of rows and z.

The only room that touches ``pyro.poutine``. Above it everything is tensors:

* ``propose`` draws z for every row from the guide, with log Q(z | x); ``draw_prior`` from the prior;
* ``log_joint`` gives log P(z) and log P(x | z) of rows and any z, ``log_proposal`` log Q(z | x);
* ``simulate`` draws rows from the model itself;
* ``Coordinates`` writes z as a real vector, for methods that move it;
* ``loss`` is a Pyro ELBO's loss of a minibatch, for training;
* ``behaviour`` is what the pair computes on a few rows: checkpoints know it by that.

``inspect`` comes first. It runs the pair on a handful of rows, finds the plate over rows, and refuses a
pair for which a log P(x_n) of one row would not mean what it says.
"""

from pyrovae.pair.behaviour import behaviour, left_as_found, probe
from pyrovae.pair.contract import check_every_leaf
from pyrovae.pair.coordinates import Coordinates
from pyrovae.pair.inspection import check_supports, inspect
from pyrovae.pair.running import (
    Batch,
    Latents,
    LogJoint,
    Structure,
    all_values,
    draw_prior,
    log_joint,
    log_proposal,
    loss,
    other_values,
    propose,
    simulate,
    weigh,
)

__all__ = [
    "Batch",
    "Coordinates",
    "Latents",
    "LogJoint",
    "Structure",
    "all_values",
    "behaviour",
    "check_every_leaf",
    "check_supports",
    "draw_prior",
    "inspect",
    "left_as_found",
    "log_joint",
    "log_proposal",
    "loss",
    "other_values",
    "probe",
    "propose",
    "simulate",
    "weigh",
]
