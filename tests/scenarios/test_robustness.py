"""Robustness: what models take, give back and do with sizes, beside computing.

Tested elsewhere, word for word: dicts, tuples and lists at either end (tests/graph/test_containers.py), integers and
masks that are never observed, indices and inputs that are no tensors (tests/graph/test_kinds.py), operations in place
(tests/graph/test_rewrite.py).
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import edgeq
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import Wired, assert_near, conv, folded, norm, quantizers, trained

# ---- sizes and other values that are no floating tensors


def unpacked(m, x):
    batch, channels, height, width = x.shape
    return m.conv(x).reshape(batch, channels * height, width)


def asserted(m, x):
    assert x.size(1) == 3, "three channels"
    assert x.shape[0] == x.size(0)
    torch._assert(x.ndim == 4, "images")
    return m.conv(x).flatten(1)


def positions(m, x):
    batch, _, height, width = x.size()
    return m.conv(x).view(batch, -1, height * width) * torch.arange(height * width).gt(3)


SIZES = {
    "len of a tensor": lambda m, x: m.conv(x).reshape(len(x), -1),
    "len of a shape": lambda m, x: m.conv(x).flatten(len(x.shape) - 2),
    "ndim": lambda m, x: m.conv(x).flatten(x.ndim - 2),
    "numel": lambda m, x: m.conv(x).reshape(x.numel() // x.shape[-1], -1),
    "arithmetic": lambda m, x: m.conv(x).view(x.size(0) * x.size(1) // 1, x.shape[-1] + 0, -1),
    "a shape as an argument": lambda m, x: m.conv(x).reshape(x.shape),
    "unpacked": unpacked,
    "asserted": asserted,
}


BY_EXAMPLE = ("len of a tensor", "len of a shape", "asserted")  # which only example inputs can show


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_left_alone_and_values_keep_their_codes(name):
    model = Wired(lambda m, x: m.last(SIZES[name](m, x).reshape(x.size(0), -1)), conv=conv(), last=nn.Linear(192, 4))
    model, x = model.eval(), images()
    wrapped = calibrated(model, x, example_inputs=x if name in BY_EXAMPLE else None)
    assert quantizers(wrapped) == ["x", "conv", "last"]
    operations = list(wrapped.convert().module.operations.values())
    assert operations.count("quantize") == 1  # nothing on the way goes back to real numbers
    assert {*operations} == {"quantize", "conv2d", "moved", "linear"}
    assert_near(wrapped, model, x)
    assert_exact(wrapped, images(5, 3, 8, 8))  # sizes are read anew


@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_without_example_inputs_what_cannot_be_followed_is_quantized_in_parts(name):
    model = Wired(lambda m, x: m.last(SIZES[name](m, x).reshape(x.size(0), -1)), conv=conv(), last=nn.Linear(192, 4))
    model, x = model.eval(), images()
    wrapped = calibrated(model, x)
    assert len(wrapped.module.quantized_layers()) == 2
    assert len(quantizers(wrapped)) == 4  # both ends of both
    assert_near(wrapped, model, x)


def test_a_mask_of_positions_is_no_quantized_tensor():
    model, x = Wired(positions, conv=conv()).eval(), images()
    wrapped = calibrated(model, x)
    assert len(quantizers(wrapped)) == 3  # the input, the convolution and the product
    assert "never touched: no floating tensor" in "".join(
        line for line in wrapped.explain().splitlines() if line.startswith("gt")
    )
    assert_near(wrapped, model, x)


ARGUMENTS = {
    "permute": lambda y: y.permute(0, 2, 3, 1),
    "permute of a list": lambda y: torch.permute(y, [0, 3, 1, 2]),
    "repeat": lambda y: y.repeat(1, 2, 1, 1),
    "repeat of a tuple": lambda y: y.repeat((1, 1, 2, 1)),
    "reshape": lambda y: y.reshape(2, -1),
    "reshape of a list": lambda y: torch.reshape(y, [2, -1]),
    "reshape by name": lambda y: torch.reshape(input=y, shape=(2, 3, -1)),
    "transpose": lambda y: y.transpose(1, -1),
    "transpose by name": lambda y: torch.transpose(y, dim0=1, dim1=2),
    "unsqueeze": lambda y: y.unsqueeze(1),
    "unsqueeze in place": lambda y: y.unsqueeze_(0),
    "view": lambda y: y.view(2, 3, 64),
    "view of a size": lambda y: y.view(y.size()),
    "view of items of a size": lambda y: y.view(y.shape[0], y.shape[1], 64),
    "flatten by name": lambda y: torch.flatten(y, start_dim=2),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_numbers_among_the_arguments_are_never_observed_however_they_are_given(name):
    model, x = Wired(lambda m, x: ARGUMENTS[name](m.conv(x)), conv=conv()).eval(), images()
    wrapped = calibrated(model, x)
    assert quantizers(wrapped) == ["x", "conv"]
    assert_near(wrapped, model, x)


# ---- what comes in and goes out


@pytest.mark.parametrize("names", ["x, mask=None", "x, *, mask=None"], ids=["positional", "keyword only"])
def test_a_tensor_that_is_left_out_is_left_out(names):
    scope = {"nn": nn, "conv": conv}
    exec(
        "class Masked(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = conv()\n"
        f"    def forward(self, {names}):\n"
        "        y = self.conv(x)\n"
        "        return y if mask is None else y * mask\n",
        scope,
    )
    model, x = scope["Masked"]().eval(), images()
    without = calibrated(model, x)
    assert quantizers(without) == ["x", "conv"]
    assert_near(without, model, x)
    inputs = {"x": x, "mask": images(seed=1).sigmoid()}
    wrapped = edgeq.PTCFxModule(model, "WC8_AT8", example_inputs=inputs).train()
    wrapped(**inputs)
    wrapped.eval()
    assert sorted(quantizers(wrapped)) == ["conv", "mask", "mul", "x"]
    with torch.no_grad():
        assert torch.equal(wrapped(**inputs), wrapped.convert()(**inputs))
        assert relative_error(wrapped(**inputs), model(**inputs)) < 0.03


def test_none_and_values_that_nobody_reads():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = conv(), conv()

        def forward(self, x):
            self.spare(x)
            return None, {"y": [self.conv(x), None]}

    model, x = Model().eval(), images()
    wrapped = calibrated(model, x)
    found, converted = wrapped(x), wrapped.convert()(x)
    for output in (found, converted):
        assert output[0] is None
        assert output[1]["y"][1] is None
    assert torch.equal(found[1]["y"][0], converted[1]["y"][0])
    assert "spare" not in wrapped.convert().module.operations  # nobody reads it
    assert torch.equal(wrapped.module.state_dict()["spare.weight"], model.spare.weight)


def test_a_function_of_the_users_that_returns_a_list_is_looked_into():
    def halves(x):
        return [x[:, :2], x[:, 2:]]

    def function(m, x):
        first, second = halves(m.conv(x))
        return {"first": m.one(first), "rest": [m.two(second), (first, halves(x)[0])]}

    model, x = Wired(function, conv=conv(3, 4), one=conv(2, 2), two=conv(2, 3)).eval(), images()
    wrapped = calibrated(model, x)
    assert quantizers(wrapped) == ["x", "conv", "one", "two"]
    assert_near(wrapped, model, x)


# ---- models in another state than PyTorch's quantization takes them


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_that_comes_in_another_type_is_calibrated_and_trained_in_it(dtype):
    def model():
        return nn.Sequential(conv(3, 6), norm(6), nn.ReLU(), conv(6, 4, 3), nn.Flatten(), nn.Linear(144, 4))

    plain, x = calibrated(model().eval(), images()), images()
    wrapped = calibrated(model().to(dtype).eval(), x.to(dtype))
    assert {value.dtype for key, value in wrapped.state_dict().items() if key.endswith("bias_shift")} == {dtype}
    assert {quantizer.scale.dtype for quantizer in wrapped.module.quantizers()} == {torch.float32}
    found, converted = wrapped(x.to(dtype)), wrapped.convert()(x)
    assert (found.dtype, converted.dtype) == (dtype, torch.float32)
    assert relative_error(found, plain(x)) < 0.03
    assert relative_error(converted, plain(x)) < 0.03
    training = trained(model().to(dtype), x.to(dtype))
    assert training(x.to(dtype)).dtype is dtype
    assert all(parameter.grad.isfinite().all() for parameter in training.parameters())


WEIGHTS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm by hooks": torch.nn.utils.weight_norm,
    "spectral norm by hooks": torch.nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_computed_are_quantized_trained_and_deployed(name):
    def model():
        torch.manual_seed(0)
        first, last = WEIGHTS[name](nn.Conv2d(3, 6, 3)), WEIGHTS[name](nn.Linear(216, 4))
        return nn.Sequential(first, norm(6), nn.ReLU(), nn.Flatten(), last)

    x, float_model = images(4, 3, 8, 8), model().eval()
    wrapped = calibrated(float_model, x)
    assert folded(wrapped) == {"0": "norm, clip 0..", "4": ""}
    assert quantizers(wrapped) == ["input_1", "0", "4"]
    assert set(wrapped.module.state_dict()) >= set(float_model.state_dict())
    assert_near(wrapped, float_model, x, within=0.03)
    own = model().train()
    training = edgeq.QATFxModule(own, "WC8_AT8", total_epochs=4).train()
    optimizer = torch.optim.SGD(training.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        training(x).square().mean().backward()
        assert all(parameter.grad is not None for parameter in own.parameters())
        optimizer.step()
    training.eval()
    converted = training.convert()  # before any forward pass could bring a weight up to date
    with torch.no_grad():
        assert torch.equal(converted(x), training(x))
        before = training(x)
        for parameter in own[4].parameters():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.equal(training(x), before)  # what is written to a parameter is seen in evaluation too
        for twin in (copy.deepcopy(training), pickle.loads(pickle.dumps(training))):
            assert torch.equal(twin(x), training(x))
