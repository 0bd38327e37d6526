"""Several training steps as one graph of tensor operations, traced from Pyro once.

A step of ``training`` runs guide, model and every Pyro message again, though they do the same each time.
``TracedSteps`` runs them once under torch's tracer, which records the tensor operations of the loss and its gradients.
It adds clipping and the optimizer's update, repeats this for a few minibatches, and lets torch's inductor compile all
of it.

Everything that a step reads is an input of the graph, not a constant in it. Parameters, buffers and moments are changed
in place. Rows are gathered from the data. Noise is drawn before the call, in the order in which Pyro would draw it.
The learning rate and the KL weight are inputs, too. A traced step equals ``training.step`` up to rounding.
"""

from pyrovae.tracing.compiling import why_not_compiled
from pyrovae.tracing.densities import TracedDensity
from pyrovae.tracing.drawing import NoiseOfRows, Untraceable
from pyrovae.tracing.evaluation import Call, Runner, tile_terms
from pyrovae.tracing.gradients import Gradients, trace_gradients
from pyrovae.tracing.steps import NotFinite, StepLoss, TracedSteps, batch_sizes, calls
from pyrovae.tracing.updates import (
    is_dense,
    lay_out,
    moments,
    options,
    steps_alone,
    take_step,
    updates_inside,
)

__all__ = [
    "Call",
    "Gradients",
    "NoiseOfRows",
    "NotFinite",
    "Runner",
    "StepLoss",
    "TracedDensity",
    "TracedSteps",
    "Untraceable",
    "batch_sizes",
    "calls",
    "is_dense",
    "lay_out",
    "moments",
    "options",
    "steps_alone",
    "take_step",
    "tile_terms",
    "trace_gradients",
    "updates_inside",
    "why_not_compiled",
]
