"""Preparing shares a model's parameters: it needs little memory beside the model's own."""

import gc
import linecache
import tracemalloc
import weakref

import pytest
import torch

import edgeq
from recipes.benchmarks.memory import peak
from recipes.torchvision_import import import_torchvision
from tests.networks import network

SHARE = 0.2  # of the model's bytes
NAMES = ["resnet50", "mobilenet_v2", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("vit_b_16", "swin_t"))]


def model_of(name):
    return getattr(import_torchvision().models, name)(weights=None).eval()


def wrapped(model, is_qat):
    return edgeq.QATFxModule(model, total_epochs=2) if is_qat else edgeq.PTCFxModule(model)


def size(module):
    """Bytes of the memory behind all parameters and buffers, what they share counted once."""
    tensors = [*module.parameters(), *module.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_network_takes_a_fifth_more_than_the_model_at_most(name, is_qat):
    model = model_of(name)
    prepared = wrapped(model, is_qat)
    own = {id(parameter) for parameter in prepared.parameters()}
    assert all(id(parameter) in own for parameter in model.parameters())
    assert size(model) < size(prepared) < (1 + SHARE) * size(model)


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_preparing_holds_a_fifth_of_the_model_at_most_at_any_moment(name, is_qat):
    model = model_of(name)
    tensors = peak(lambda: wrapped(model, is_qat))
    tracemalloc.start()
    prepared = wrapped(model, is_qat)
    objects = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensors > 0
    assert objects > 0
    assert tensors + objects < SHARE * size(model), (tensors, objects, size(model))
    del prepared


@pytest.mark.parametrize("is_qat", [False, True])
def test_a_network_that_is_dropped_is_gone_at_once_with_its_source(is_qat):
    model = network("residual")
    wrapped(model, is_qat)  # what a process does only once
    gc.collect()
    gc.disable()
    try:
        sources = set(linecache.cache)
        prepared = wrapped(model, is_qat)
        modules = [weakref.ref(module) for module in prepared.modules()]
        assert len(set(linecache.cache) - sources) == 1
        del prepared
        assert [module() for module in modules if module() is not None] == []
        assert set(linecache.cache) == sources
    finally:
        gc.enable()


def test_the_measure_sees_a_copy():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(512, 1024))
    assert size(model) == 4 * (3 * 4 + 4 + 512 * 1024 + 1024)
    kept = []
    assert peak(lambda: kept.append([parameter.clone() for parameter in model.parameters()])) >= size(model)
    tied = torch.nn.Sequential(model[1], torch.nn.Linear(512, 1024))
    tied[1].weight = tied[0].weight
    assert size(tied) == 4 * (512 * 1024 + 2 * 1024)
