"""PyTorch's transformer layers, alone and inside of others, give in float what PyTorch gives, and are quantized."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.matmul import QuantizedMatmul
from tests.graph.parity import assert_exact, calibrated, images, relative_error

X, MEMORY = images(3, 5, 8), images(3, 7, 8, seed=1)
LATER = nn.Transformer.generate_square_subsequent_mask(5)
PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
UNSEEN = torch.tensor([[0, 0, 0, 0, 0, 0, 1]] * 3, dtype=torch.bool)
SIZES = {"dim_feedforward": 16, "batch_first": True}


def spread(module):
    """Parameters that are not those of a fresh module."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module.eval()


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(8, 2, **SIZES | options)


def decoder_layer(**options):
    return nn.TransformerDecoderLayer(8, 2, **SIZES | options)


class Within(nn.Module):
    """The layer as a part of a model, called as a function says."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x, other=None, third=None):
        given = [value for value in (other, third) if value is not None]
        return self.call(self.layer, x, *given)


def encoder(norm=None, **options):
    return nn.TransformerEncoder(encoder_layer(**options), 2, norm, enable_nested_tensor=False)


ORDERS = {"norm first": True, "norm last": False}
MASKS = {"tgt_mask": LATER, "memory_mask": images(5, 7), "memory_key_padding_mask": UNSEEN.float() * -9}
OF_BOTH = {"tgt_mask": LATER, "src_key_padding_mask": UNSEEN, "memory_key_padding_mask": UNSEEN}


def decoder(norm=None):
    return nn.TransformerDecoder(decoder_layer(), 2, norm)


def whole(**options):
    return nn.Transformer(8, 2, 1, 1, 16, **options)


def within(make, call):
    return lambda: Within(make(), call)


CASES = {
    **{
        f"encoder layer, {name}, {order}": (lambda a=a, f=first: encoder_layer(activation=a, norm_first=f), (X,))
        for name, a in {"relu": "relu", "gelu": "gelu", "a function": F.silu, "a module": nn.PReLU()}.items()
        for order, first in ORDERS.items()
    },
    "encoder layer without biases": (lambda: encoder_layer(bias=False), (X,)),
    "encoder layer, batch second": (lambda: encoder_layer(batch_first=False), (X.transpose(0, 1),)),
    "encoder layer, no batch": (lambda: encoder_layer(batch_first=False), (X[0],)),
    "encoder layer with a mask": (within(encoder_layer, lambda m, x, mask: m(x, mask)), (X, LATER)),
    "encoder layer that is causal": (
        within(encoder_layer, lambda m, x, mask: m(x, src_mask=mask, is_causal=True)), (X, LATER < 0)),
    "encoder layer with padding": (within(encoder_layer, lambda m, x, p: m(x, src_key_padding_mask=p)), (X, PADDED)),
    "encoder": (encoder, (X,)),
    "encoder with a norm": (lambda: encoder(nn.LayerNorm(8), norm_first=True), (X,)),
    "encoder with masks": (encoder, {"src": X, "mask": LATER, "src_key_padding_mask": PADDED}),
    "encoder in a model": (within(encoder, lambda m, x, mask: m(x, mask, is_causal=True)), (X, LATER)),
    **{
        f"decoder layer, {order}": (lambda first=first: decoder_layer(norm_first=first), (X, MEMORY))
        for order, first in ORDERS.items()
    },
    "decoder layer with masks": (decoder_layer, {"tgt": X, "memory": MEMORY} | MASKS),
    "decoder": (lambda: decoder(nn.LayerNorm(8)), {"tgt": X, "memory": MEMORY, "tgt_mask": LATER}),
    "transformer": (lambda: whole(batch_first=True), (MEMORY, X)),
    "transformer, batch second": (whole, (MEMORY.transpose(0, 1), X.transpose(0, 1))),
    "transformer with masks": (lambda: whole(batch_first=True), {"src": MEMORY, "tgt": X} | OF_BOTH),
    "transformer of given parts": (
        lambda: nn.Transformer(8, 2, custom_encoder=encoder(), custom_decoder=decoder(), batch_first=True),
        (MEMORY, X)),
}  # fmt: skip
PADDING = ("encoder layer with padding", "encoder with masks")  # where PyTorch gives zeros for what nobody reads
COUNTS = {nn.TransformerEncoderLayer: 6, nn.TransformerDecoderLayer: 10}  # of layers with weights


def called(model, inputs):
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_gives_in_float_what_pytorch_gives(name):
    make, inputs = CASES[name]
    model = spread(make())
    wrapped = edgeq.PTCFxModule(model, "WC8_AT8", example_inputs=inputs)
    with torch.no_grad():
        found, expected = called(wrapped.module.run_float, inputs), called(model, inputs)
    read = ~PADDED if name in PADDING else slice(None)
    torch.testing.assert_close(found[read], expected[read], rtol=1e-4, atol=1e-5)
    kinds = [type(module) for module in model.modules()]
    assert len(wrapped.module.quantized_layers()) == sum(kinds.count(kind) * count for kind, count in COUNTS.items())
    products = [module for module in wrapped.module.modules() if isinstance(module, QuantizedMatmul)]
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(products) == 2 * len(attentions)
    own = dict(wrapped.module.named_parameters())
    assert all(own[key] is value for key, value in model.named_parameters())


@pytest.mark.parametrize(
    "name", ["encoder layer, gelu, norm first", "encoder with masks", "decoder", "transformer with masks"]
)
def test_a_layer_converts_bit_for_bit_and_is_near_the_float_model(name):
    make, inputs = CASES[name]
    model = spread(make())
    wrapped = edgeq.PTCFxModule(model, "WC8_AT8", example_inputs=inputs).train()
    called(wrapped, inputs)
    wrapped.eval()
    with torch.no_grad():
        simulated, converted = called(wrapped, inputs), called(wrapped.convert(), inputs)
        read = ~PADDED if name in PADDING else slice(None)
        assert torch.equal(simulated, converted)
        assert relative_error(simulated[read], called(model, inputs)[read]) < 0.1


def test_training_drops_and_learns_as_the_float_layer_does():
    def layer():
        made = spread(encoder_layer(dropout=0.3, norm_first=True)).train()
        made.dropout1.p = 0.0  # it would draw in the order of memory, which is another one
        return made

    model, twin = layer(), layer()
    wrapped = edgeq.QATFxModule(model, total_epochs=1, num_observer_update_epochs=0).train()  # uncalibrated: float
    torch.manual_seed(2)
    expected = twin(X)
    expected.square().sum().backward()
    torch.manual_seed(2)
    found = wrapped(X)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)
    assert torch.equal(wrapped.eval()(X), wrapped(X))


class Scaled(nn.TransformerEncoderLayer):
    def _ff_block(self, x):
        return super()._ff_block(x) * 2


def test_a_subclass_with_blocks_of_its_own_is_not_taken_for_pytorchs():
    model = spread(nn.Sequential(nn.Linear(8, 8), Scaled(8, 2, **SIZES)))
    torch.backends.mha.set_fastpath_enabled(False)  # which knows nothing of the subclass
    try:
        expected = model(X)
        wrapped = calibrated(model, X, example_inputs=X)
        assert relative_error(assert_exact(wrapped, X)[0], expected) < 0.05
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_an_exported_encoder_gives_the_same_integers(tmp_path):
    model = spread(encoder(nn.LayerNorm(8), norm_first=True))
    wrapped = calibrated(model, X, preset="WT8SYMP2_AT8SYMP2")
    result = wrapped.export(X, tmp_path / "encoder.onnx")
    assert result.passed, str(result)
    assert result.nodes["MatMul"] == 16
