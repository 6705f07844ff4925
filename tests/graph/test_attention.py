"""Attention is written out: in float it gives what PyTorch gives, and every product of it is quantized."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.matmul import QuantizedMatmul
from tests.graph.parity import assert_exact, calibrated, images, leaves, relative_error
from tests.scenarios.wired import quantizers

X, MEMORY = images(3, 5, 8), images(3, 7, 8, seed=1)


class Network(nn.Module):
    """Calls a function with an attention module and the inputs; a linear layer follows."""

    def __init__(self, call=lambda attention, x: attention(x, x, x), **options):
        super().__init__()
        torch.manual_seed(3)
        self.attention, self.call = nn.MultiheadAttention(8, 2, **options), call
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, 0, 0.4)
        self.last = nn.Linear(8, 4)

    def forward(self, *inputs):
        output, weights = self.call(self.attention, *inputs)
        return self.last(output), weights


def prepared(model, *inputs, **options):
    return calibrated(model.eval(), *inputs, example_inputs=inputs, **options)


def float_outputs(model, *inputs):
    """What the prepared network gives in float, and what the model does."""
    wrapped = edgeq.PTCFxModule(model.eval(), "WC8_AT8", example_inputs=inputs)
    with torch.no_grad():
        return leaves(wrapped.module.run_float(*inputs)), leaves(model(*inputs))


def assert_as_in_pytorch(model, *inputs):
    found, expected = float_outputs(model, *inputs)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def cross(attention, x, memory):
    return attention(x, memory, memory)


SHAPES = {
    "self": (Network(), X),
    "self, batch first": (Network(batch_first=True), X),
    "cross": (Network(cross), X.transpose(0, 1), MEMORY.transpose(0, 1)),
    "cross, batch first": (Network(cross, batch_first=True), X, MEMORY),
    "without biases": (Network(bias=False), X),
    "other widths": (
        Network(lambda a, x, k, v: a(x, k, v), kdim=6, vdim=4, batch_first=True),
        *(X, images(3, 7, 6, seed=2), images(3, 7, 4, seed=3)),
    ),
    "no batch": (Network(), X[0]),
    "no batch, as many queries as features": (Network(), images(8, 8)),
    "no batch, batch first": (Network(batch_first=True), X[0]),
    "a batch of one": (Network(batch_first=True), X[:1]),
    "no weights": (Network(lambda a, x: a(x, x, x, need_weights=False)), X),
    "weights of each head": (Network(lambda a, x: a(x, x, x, average_attn_weights=False)), X),
}


@pytest.mark.parametrize("name", SHAPES)
def test_multi_head_attention_gives_in_float_what_pytorch_gives(name):
    assert_as_in_pytorch(*SHAPES[name])


attended = F.scaled_dot_product_attention
Q, K = images(2, 4, 5, 8), images(2, 4, 7, 8, seed=1)
ARGUMENTS = {
    "nothing": {},
    "scale": {"scale": 0.2},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": images(5, 7) > -0.5},
    "boolean mask of each head": {"attn_mask": images(2, 4, 5, 7) > -0.5},
    "floating mask": {"attn_mask": images(2, 1, 5, 7)},
    "infinite mask": {"attn_mask": torch.zeros(5, 7).masked_fill(images(5, 7) > 0.5, -torch.inf)},
    "groups of queries": {"enable_gqa": True},
    "all": {"attn_mask": images(5, 7), "scale": 0.5, "enable_gqa": True, "dropout_p": 0.0},
}


class Products(nn.Module):
    """Scaled dot-product attention of linear layers, with given options."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v, self.options = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), options

    def forward(self, x, memory):
        k, v = self.k(memory), self.v(memory)
        if self.options.get("enable_gqa"):
            k, v = k[:, :2], v[:, :2]
        return attended(self.q(x), k, v, **self.options)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_scaled_dot_products_give_in_float_what_pytorch_gives(name):
    assert_as_in_pytorch(Products(**ARGUMENTS[name]), Q, K)


@pytest.mark.parametrize(("x", "memory"), [(Q[0], K[0]), (Q[0, 0], K[0, 0]), (Q, K[:1])], ids=["3", "2", "broadcast"])
def test_scaled_dot_products_of_any_rank(x, memory):
    assert_as_in_pytorch(Products(), x, memory)


# ---- what is quantized


def test_queries_keys_and_values_are_layers_and_both_products_are_quantized():
    wrapped = prepared(Network(batch_first=True), X)
    layers = {layer.site.name: layer for layer in wrapped.module.quantized_layers()}
    rows = [layer.weight for name, layer in layers.items() if name.startswith("attention.linear")]
    assert [tuple(weight.shape) for weight in rows] == [(8, 8)] * 3
    in_proj = wrapped.module.get_submodule("attention").in_proj_weight
    assert torch.equal(torch.cat(rows), in_proj)
    assert len({layer.site.target.name for layer in layers.values()}) == 5  # each has a range of its own
    products = [module for module in wrapped.module.modules() if isinstance(module, QuantizedMatmul)]
    assert len(products) == 2
    assert all(product.site.target is not None for product in products)
    softmax = wrapped.module.quantization.tensors.get_submodule("attention_softmax")
    assert float(softmax.scale) == 1 / 256
    assert "stays float" not in wrapped.explain()


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", ["self, batch first", "cross", "other widths", "weights of each head", "no batch"])
def test_attention_converts_bit_for_bit_and_is_near_the_float_model(name, preset):
    model, *inputs = SHAPES[name]
    wrapped = prepared(copy.deepcopy(model), *inputs, preset=preset)
    found = assert_exact(wrapped, *inputs)
    assert relative_error(found[0], model.eval()(*inputs)[0]) < (0.05 if preset == "WC8_AT8" else 0.2)


@pytest.mark.parametrize(("name", "opset"), [("self", 17), ("cross, batch first", 17), ("self, batch first", 18)])
def test_an_exported_file_gives_the_same_integers(name, opset, tmp_path):
    model, *inputs = SHAPES[name]
    wrapped = prepared(copy.deepcopy(model), *inputs, preset="WT8SYMP2_AT8SYMP2")
    result = wrapped.export(tuple(inputs), tmp_path / "attention.onnx", opset_version=opset)
    assert result.passed, str(result)
    assert result.nodes["MatMul"] == 7  # five layers and two products
    assert [parity.unequal for parity in result.parity] == [0, 0]


# ---- the user's module stays the user's


def test_float_keys_and_parameters_stay():
    model = Network()
    own = dict(model.named_parameters())
    module = edgeq.QATFxModule(model, total_epochs=2, example_inputs=(X,)).module
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert shapes.items() >= {key: value.shape for key, value in model.state_dict().items()}.items()
    kept = dict(module.named_parameters())
    assert all(kept[name] is parameter for name, parameter in own.items())
    assert type(module.get_submodule("attention")) is nn.MultiheadAttention


def test_the_rows_of_the_one_parameter_learn_as_in_the_float_model():
    model, twin = Network(batch_first=True).train(), Network(batch_first=True).train()
    wrapped = edgeq.QATFxModule(model, "WC8_AT8", total_epochs=2, example_inputs=X).train()
    for network in (wrapped, twin):
        network(X)[0].square().sum().backward()
    for name, parameter in twin.named_parameters():
        gradient = dict(model.named_parameters())[name].grad
        assert relative_error(gradient, parameter.grad) < 0.1, name


def test_attention_drops_in_training_as_the_float_model_does_and_never_else():
    for options in ({}, {"need_weights": False}):
        model = Network(lambda a, x, options=options: a(x, x, x, **options), dropout=0.5).train()
        wrapped = edgeq.QATFxModule(model, num_observer_update_epochs=0, total_epochs=1, example_inputs=(X,)).train()
        torch.manual_seed(5)
        expected = model(X)[0]
        torch.manual_seed(5)
        found = wrapped(X)[0]
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, wrapped(X)[0], atol=1e-3)
        assert torch.allclose(wrapped.eval()(X)[0], model.eval()(X)[0], atol=1e-5)
        calibrating = edgeq.PTCFxModule(model, example_inputs=(X,)).train()
        assert torch.equal(calibrating(X)[0], calibrating(X)[0])


class Dropping(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p, self.q = p, nn.Linear(8, 8)

    def forward(self, x):
        q = self.q(x)
        return attended(q, q, q, dropout_p=self.p if self.training else 0.0)


def test_products_drop_at_the_rate_that_they_have_in_training():
    wrapped = edgeq.QATFxModule(Dropping(), total_epochs=2).train()
    (dropout,) = wrapped.module.quantization.dropouts.values()
    assert dropout.p == 0.5
    assert not torch.equal(wrapped(Q), wrapped(Q))
    wrapped.eval()
    assert torch.equal(wrapped(Q), wrapped(Q))
    never = edgeq.QATFxModule(Dropping(0.0), total_epochs=2).train()
    assert torch.equal(never(Q), never(Q))


# ---- what is not written out


def test_an_attention_that_is_left_untraced_is_one_call_in_float():
    model = Network(batch_first=True).eval()
    wrapped = prepared(model, X, untraced=["attention"])
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["last"]
    assert type(wrapped.module.get_submodule("attention")) is nn.MultiheadAttention
    assert relative_error(assert_exact(wrapped, X)[0], model(X)[0]) < 0.02


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_extra_keys_stay_float_and_the_table_says_why(options):
    model = Network(batch_first=True, **options).eval()
    wrapped = prepared(model, X)
    assert "stays float: with bias_k or add_zero_attn it is one opaque call" in wrapped.explain()
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["last"]
    assert relative_error(assert_exact(wrapped, X)[0], model(X)[0]) < 0.02


def test_what_is_inside_of_an_opaque_attention_is_no_part_by_itself():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.last(self.inner(x, x, x)[0] if bool(x.sum() != 0) else x)

    wrapped = calibrated(Deciding().eval(), X)
    assert list(wrapped.module.parts) == ["last"]
    assert_exact(wrapped, X)


class Doubling(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        output, weights = super().forward(query * 2, key, value, **options)
        return output + 1, weights


def test_a_subclass_with_a_forward_of_its_own_computes_in_its_own_way():
    model = Network(batch_first=True).eval()
    model.attention.__class__ = Doubling
    expected = model(X)
    wrapped = prepared(model, X)
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(X)[0], expected[0], atol=1e-5)
    assert len(wrapped.module.quantized_layers()) == 4  # those of queries, of keys with values, out_proj, last
    assert relative_error(assert_exact(wrapped, X)[0], expected[0]) < 0.05


class Corner(nn.Module):
    """Of PyTorch's own tests: pieces of one tensor are made matrices of one column, asserted about and multiplied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        first, second, third = self.conv(x).chunk(3, dim=0)
        q = first.contiguous().view(-1, 1).transpose(0, 1)
        k = second.contiguous().view(-1, 1).transpose(0, 1)
        v = third.contiguous().view(-1, 1).transpose(0, 1)
        torch._assert(k.size(1) == 1, "key size should be equal to 1")
        return q * k + torch.mm(k, v)


def test_the_corner_case_of_attention():
    model, x = Corner().eval(), images(3, 1, 1, 1)
    wrapped = calibrated(model, x)
    assert sorted(quantizers(wrapped)) == ["add", "conv", "mm", "mul", "x"]
    assert relative_error(assert_exact(wrapped, x), model(x)) < 0.03
    with pytest.raises(AssertionError, match="key size should be equal to 1"):
        wrapped.convert()(images(3, 1, 2, 1))
