"""The names of families. What they compute is tested in files of their own."""

import re

import pytest

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors


def snake_case(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize("registry", [priors.REGISTRY, likelihoods.REGISTRY, encoders.REGISTRY])
def test_registered_under_the_class_name_in_snake_case(registry):
    assert all(name == snake_case(family.__name__) for name, family in registry.items())


def test_mlp_layers():
    network = pv.MLP(3, (5, 4), 2, activation="tanh")
    assert [type(layer).__name__ for layer in network.layers] == [
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
    ]
    assert [type(layer).__name__ for layer in pv.MLP(3, (), 2).layers] == ["Linear"]
