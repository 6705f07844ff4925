"""Observers that measure weights: shared by all of a kind, without a trace in the state of a network."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

import edgeq
from edgeq.observers.measuring import measuring
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.spec import WEIGHT, Method, TensorSpec
from tests.networks import batches, network

FINE = Method("squared_error", (("candidates", 9),))


def test_weights_of_one_kind_have_one_observer_and_others_their_own():
    one = measuring(WEIGHT, FINE, 0)
    assert measuring(WEIGHT, Method("squared_error", (("candidates", 9),)), 0) is one
    others = [measuring(WEIGHT, FINE, 1), measuring(WEIGHT, FINE), measuring(WEIGHT, Method("squared_error"), 0)]
    others.append(measuring(TensorSpec(), FINE, 0))
    assert len({id(observer) for observer in (one, *others)}) == 5


def test_the_observer_goes_with_the_last_weight_that_it_measures():
    quantizers = [WeightQuantizer(WEIGHT, FINE, channels, 0) for channels in (3, 5)]
    observer = weakref.ref(quantizers[0].measure.__self__)
    assert quantizers[1].measure.__self__ is observer()
    gc.disable()
    try:
        del quantizers[0]
        assert observer() is not None
        quantizers.clear()
        assert observer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_measures_the_same(duplicate):
    made = WeightQuantizer(WEIGHT, FINE, 4, 0)
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    copied = duplicate(made)
    for quantizer in (made, copied):
        quantizer.refresh(weight)
    assert torch.equal(copied.scale, made.scale)
    assert not torch.equal(copied.scale, torch.ones(4))


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC4_AT8"])
def test_weights_add_their_scales_to_the_state_and_nothing_of_an_observer(preset):
    wrapped = edgeq.PTCFxModule(network("residual"), preset).calibrate(batches())
    keys = {key.split("weight_quantizer.")[1] for key in wrapped.state_dict() if "weight_quantizer." in key}
    assert "scale" in keys
    assert keys <= {"scale", "offset"}
