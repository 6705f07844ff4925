"""Known distributions to observe."""

import dataclasses

import torch

from edgeq.spec import TensorSpec


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


DISTRIBUTIONS = {
    "normal": lambda n: normal(n),
    "uniform": lambda n: 3 * uniform(n) - 1,
    "after a relu": lambda n: normal(n).relu(),
    "exponential": lambda n: -torch.log(1 - uniform(n)),
    "heavy tails": lambda n: normal(n) ** 3,
    "shifted": lambda n: normal(n) + 5,
    "negative": lambda n: -normal(n).abs() - 0.1,
    "with outliers": lambda n: torch.cat([normal(n - 2), torch.tensor([-30.0, 50.0])]),
    "few values": lambda n: (2 * normal(n)).round(),
}


def spec_for(name, spec=TensorSpec()):  # noqa: B008
    """`spec` as the observer takes it."""
    return dataclasses.replace(spec, scale="power_of_two") if name == "power_of_two_search" else spec
