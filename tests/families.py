"""Every registered family with its options, from the registries: the contract tests take a new family without a further list."""

import inspect

from pyrovae import likelihoods, priors

#: Values of options without a default; 5 for others.
REQUIRED = {
    "total_count": 7,
    "num_categories": 4,
    "levels": 9,
    "latent_dim": 1,
    "num_components": 2,
    "num_classes": 2,
}
SPREADS = {"scale": 0.3, "concentration": 2.5}


def required(cls, *taken):
    """A value for each argument without a default, apart from those that are taken."""
    parameters = inspect.signature(cls).parameters.values()
    needed = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    return {name: REQUIRED.get(name, 5) for name in needed if name not in taken}


def options_of(cls):
    """The options of a likelihood, one dict for each way to have a scale or a concentration."""
    options, spread = required(cls, "network"), getattr(cls, "spread_name", None)
    if spread is None:
        return [options]
    return [
        options | {spread: kind} for kind in (SPREADS.get(spread, 1.0), "shared", "per_dimension", "decoder")
    ]


LIKELIHOODS = {name: options_of(cls) for name, cls in likelihoods.REGISTRY.items()}
#: Priors that need no more than the number of latent dimensions.
PRIORS = {name: cls for name, cls in priors.REGISTRY.items() if required(cls).keys() == {"latent_dim"}}
