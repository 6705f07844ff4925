"""A layer norm as normalization, product and sum, the form that TI's importer takes."""

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.normalization import Normalization
from tests.graph.parity import calibrated, images
from tests.graph.passes.networks import assert_files_agree, assert_same_function, changes, kinds, only

NAME = "layer_norm_decomposed"


class Normed(nn.Module):
    """Linear, layer norm, linear."""

    def __init__(self, *shape, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 8), nn.LayerNorm(shape or (8,), **options)
        self.second = nn.Linear(8, 4)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter, 0.5, 1.0)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


OPTIONS = {
    "weight and bias": ({}, ["Normalization", "mul", "add"]),
    "no bias": ({"bias": False}, ["Normalization", "mul"]),
    "neither": ({"elementwise_affine": False}, ["Normalization"]),
    "eps": ({"eps": 0.5}, ["Normalization", "mul", "add"]),
}


@pytest.mark.parametrize("shape", [(8,), (5, 8), (3, 5, 8)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_function_stays_for_every_shape_and_with_and_without_parameters(name, shape):
    options, expected = OPTIONS[name]
    wrapped = assert_same_function(lambda: Normed(*shape, **options).eval(), NAME, images(4, 3, 5, 8))
    assert kinds(wrapped)[1:-1] == expected
    block = next(module for module in wrapped.module.modules() if isinstance(module, Normalization))
    assert (block.dimensions, block.eps) == (len(shape), options.get("eps", 1e-5))


def test_the_normalization_is_one_block_and_the_parameters_are_quantized():
    wrapped = calibrated(Normed().eval(), images(4, 5, 8), rewrites=only(NAME))
    names = [quantizer.name for quantizer in wrapped.module.quantizers()]
    assert sorted(names) == ["first", "norm", "norm_1", "norm_2", "norm_bias", "norm_weight", "second", "x"]
    assert len(list(wrapped.module.parameters())) == len(list(Normed().parameters()))
    assert wrapped.module.norm.weight is dict(wrapped.module.named_parameters())["norm.weight"]


def test_the_users_parameters_train():
    model, reference = Normed().train(), Normed().train()
    wrapped = edgeq.QATFxModule(model, total_epochs=2, rewrites=only(NAME)).train()
    for network in (wrapped, reference):
        (network(images(4, 5, 8)) * images(4, 5, 4, seed=1)).sum().backward()
    for parameter, other in zip(reference.parameters(), model.parameters(), strict=True):
        assert torch.cosine_similarity(parameter.grad.flatten(), other.grad.flatten(), dim=0) > 0.99


def test_a_functional_layer_norm_is_written_out_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(5, 8))

        def forward(self, x):
            return self.linear(F.layer_norm(self.linear(x), (5, 8), weight=self.weight, eps=0.1))

    (change,) = changes(Functional().eval(), NAME, images(4, 5, 8))
    assert change.what == "a layer norm over (5, 8) -> normalization, mul"
    assert change.difference < 1e-5
    calculated = changes(_Computed().eval(), NAME)
    assert calculated == ()


class _Computed(nn.Module):
    """A layer norm whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return F.layer_norm(self.linear(x), (8,), self.weight * 2)


def test_the_file_holds_the_pattern_of_the_importer(tmp_path):
    x = images(4, 5, 8)
    assert_files_agree(calibrated(Normed().eval(), x, rewrites=only(NAME)), x, folder=tmp_path)
    kinds_of = [node.op_type for node in onnx.load(tmp_path / "qdq.onnx").graph.node]
    pattern = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"]
    start = kinds_of.index("ReduceMean")
    assert kinds_of[start : start + 7] == pattern
    assert "LayerNormalization" not in kinds_of
    assert kinds_of.count("Mul") == 1


def test_it_runs_only_on_request_and_leaves_what_a_rule_keeps():
    assert "LayerNorm" in kinds(edgeq.PTCFxModule(Normed().eval()))
    rules = {"inherits": "DEFAULT", "rules": [{"type": "LayerNorm", "quantize": False}]}
    assert edgeq.PTCFxModule(Normed().eval(), rules, rewrites={NAME: True}).module.changes.each == ()
    wider = {"inherits": "DEFAULT", "rules": [{"name": "norm", "activation": {"symmetric": True}}]}
    wrapped = edgeq.PTCFxModule(Normed().eval(), wider, rewrites={NAME: True})
    symmetric = {quantizer.name: quantizer.spec.symmetric for quantizer in wrapped.module.quantizers()}
    assert [name for name, value in symmetric.items() if not value] == ["x", "first", "second"]
