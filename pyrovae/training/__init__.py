"""fit() trains a pair by Pyro's stochastic variational inference over minibatches and returns its History."""

from pyrovae.training.fit import fit
from pyrovae.training.history import History
from pyrovae.training.step import State, step

__all__ = ["History", "State", "fit", "step"]
