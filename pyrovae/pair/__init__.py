"""Runs a Pyro model and guide row by row, to propose z and to score rows and z.

This is the only package that uses ``pyro.poutine``. All code above it works on tensors.

* ``inspect`` comes first. It runs the pair on a few rows and finds the plate over rows. It raises an error if
  log P(x_n) of one row would not be defined. It returns a ``RowModel``.
* ``RowModel`` proposes z for rows, scores any z, draws from the prior, and simulates rows.
* ``Coordinates`` writes z as a real vector, for methods that move it.
* ``all_values``, ``other_values`` and ``DiscreteValues`` list values of discrete latents.
* ``globals.BayesianModel`` runs a model whose latents are shared by all rows, for MCMC.
* ``loss`` returns a Pyro ELBO's loss of a minibatch, for training.
* ``behaviour`` returns the pair's log-probabilities on a few rows, which checkpoints and the cache of checks compare.
* ``parameters_digest`` is a sha256 of a pair's numbers, for the same purpose.
"""

from pyrovae.pair.behaviour import behaviour, left_as_found, parameters_digest, probe
from pyrovae.pair.contract import check_averages, check_every_leaf
from pyrovae.pair.coordinates import Coordinates
from pyrovae.pair.discrete import DiscreteValues, all_values, other_values
from pyrovae.pair.inspection import check_supports, inspect
from pyrovae.pair.moments import (
    Given,
    Moments,
    check_have_means,
    guide_moments,
    lacking,
    posterior_moments,
)
from pyrovae.pair.row_model import LogJoint, RowModel
from pyrovae.pair.running import Batch, Latents, Structure, guess_nesting, loss

__all__ = [
    "Batch",
    "Coordinates",
    "DiscreteValues",
    "Given",
    "Latents",
    "LogJoint",
    "Moments",
    "RowModel",
    "Structure",
    "all_values",
    "behaviour",
    "check_averages",
    "check_every_leaf",
    "check_have_means",
    "check_supports",
    "guess_nesting",
    "guide_moments",
    "inspect",
    "lacking",
    "left_as_found",
    "loss",
    "other_values",
    "parameters_digest",
    "posterior_moments",
    "probe",
]
