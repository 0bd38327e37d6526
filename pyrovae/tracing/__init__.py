"""Several steps of training as one graph of tensor operations, traced from Pyro once.

A step of ``training`` runs guide, model and every Pyro message anew, though they do the same each time.
``TracedSteps`` runs them once under torch's tracer, which writes down the tensor operations of the loss and of
its gradients; adds clipping and the optimizer's update; repeats that for a few minibatches; and has torch's
inductor compile the whole, large products by the quicker of two libraries.

Whatever a step reads is an input of the graph and no number in it: the parameters, buffers and moments, which it
changes in place; the rows, gathered from the data; the noise, drawn before the call in the order in which Pyro
would have drawn it; the learning rate and the KL weight. A traced step is ``training.step``, up to rounding.
"""

from pyrovae.tracing.compiling import why_not_compiled
from pyrovae.tracing.drawing import Untraceable
from pyrovae.tracing.evaluation import Call, Runner, tile_terms
from pyrovae.tracing.gradients import trace_gradients
from pyrovae.tracing.graphs import unchanged
from pyrovae.tracing.steps import NotFinite, TracedSteps, batch_sizes, calls
from pyrovae.tracing.updates import moments, options, updates_inside

__all__ = [
    "Call",
    "NotFinite",
    "Runner",
    "TracedSteps",
    "Untraceable",
    "batch_sizes",
    "calls",
    "moments",
    "options",
    "tile_terms",
    "trace_gradients",
    "unchanged",
    "updates_inside",
    "why_not_compiled",
]
