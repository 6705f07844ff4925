"""What a network returns is of the class that the user's model returns, in every form of it."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import edgeq

Pair = namedtuple("Pair", "logits features")


@dataclass
class Record:
    logits: Any
    features: Any = None


@dataclass
class Output(dict):
    """As Hugging Face's models have them: a dict of what is not None, whose items are attributes as well."""

    logits: Any = None
    features: Any = None

    def __post_init__(self):
        self.update({key: value for key, value in vars(self).items() if value is not None})


class Returning(nn.Module):
    def __init__(self, kind, branches):
        super().__init__()
        self.layer, self.kind, self.branches = nn.Conv2d(3, 4, 3), kind, branches

    def forward(self, image):
        y = self.layer(image)
        if self.branches and image.shape[-1] < 4:
            return None
        return self.kind(logits=y.mean((2, 3)), features=None)


@pytest.mark.parametrize("branches", [False, True], ids=["traced symbolically", "through torch.export"])
@pytest.mark.parametrize("kind", [Pair, Record, Output])
def test_it_stays_in_training_calibration_and_conversion_and_in_copies(kind, branches):
    torch.manual_seed(0)
    model, image = Returning(kind, branches).eval(), torch.randn(2, 3, 8, 8)
    wrapped = edgeq.PTCFxModule(model, example_inputs=image).calibrate([image])
    converted = wrapped.convert()
    expected = wrapped(image).logits
    training = edgeq.QATFxModule(model, total_epochs=1, example_inputs=image).train()
    forms = [wrapped, converted, copy.deepcopy(wrapped), pickle.loads(pickle.dumps(converted)), training]
    results = [form(image) for form in forms]
    assert [type(result) for result in results] == [kind] * 5
    assert [result.features for result in results] == [None] * 5
    assert all(torch.equal(result.logits, expected) for result in results[:4])


def test_a_dict_with_fields_holds_the_same_keys():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    wrapped = edgeq.PTCFxModule(Returning(Output, False).eval()).calibrate([image])
    assert list(wrapped(image)) == list(wrapped.convert()(image)) == ["logits"]


def test_a_part_may_return_a_dict_with_fields_to_the_python_around_it():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.head = Returning(Output, False), nn.Linear(4, 2)

        def forward(self, image):
            return self.head(self.part(image).logits) + self.head(self.part(image)["logits"])

    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    wrapped = edgeq.PTCFxModule(Around().eval(), submodules=["part", "head"]).calibrate([image])
    assert torch.equal(wrapped(image), wrapped.convert()(image))
