"""Where quantizers stand: groups that share one range, ranges that are known, and what the preset's rules say."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq import QConfigMapping
from tests.graph.parity import assert_exact, calibrated, group_of, images, relative_error
from tests.networks import batches, network


class Net(nn.Module):
    """Two convolutions whose outputs differ tenfold in range, and a function of them."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.large.weight.data.mul_(10)
        self.head = nn.Conv2d(8, 2, 1)
        self.function = function

    def forward(self, x):
        return self.function(self, self.small(x), self.large(x))


SHARED = {
    "cat": lambda m, a, b: torch.cat([a, b], 1),
    "stack": lambda m, a, b: torch.stack([a, b]),
    "cat of cats": lambda m, a, b: torch.cat([torch.cat([a, a], 1), torch.cat([b, a], 1)], 1),
    "pools": lambda m, a, b: torch.cat([F.max_pool2d(a, 2), F.max_pool2d(b, 2)], 1),
    "reshapes": lambda m, a, b: torch.cat([a.flatten(2), b.reshape(b.size(0), 4, -1)], 1),
    "pads": lambda m, a, b: torch.cat([F.pad(a, (1, 0)), F.pad(b, (0, 1))], 1),
    "slices": lambda m, a, b: torch.cat([a[:, :2], b[:, 1:]], 1),
    "chunks": lambda m, a, b: torch.cat([a.chunk(2, 1)[0], b.split(3, 1)[1]], 1),
    "upsampled": lambda m, a, b: torch.cat([F.interpolate(a, scale_factor=2), F.interpolate(b, scale_factor=2)], 1),
    "relu": lambda m, a, b: F.relu(torch.cat([a, b], 1)),
    "picked": lambda m, a, b: torch.minimum(torch.where(a == a, a, b), torch.maximum(a, b)).amax(1),
}


@pytest.mark.parametrize("name", SHARED)
def test_values_that_are_only_moved_share_one_range_and_one_quantizer(name):
    model, x = Net(SHARED[name]).eval(), images()
    wrapped = calibrated(model, x, preset="WC8SYMP2_AT8SYMP2")
    quantizers = wrapped.module.quantizers()
    assert [quantizer.name for quantizer in quantizers] == ["x", "small"]
    assert group_of(wrapped, "small") == group_of(wrapped, "large") == "small"
    sites = {layer.site.name: layer.site.target for layer in wrapped.module.quantized_layers()}
    assert sites["small"] is sites["large"] is quantizers[1]
    (found,) = assert_exact(wrapped, x)
    assert (found - model(x)).abs().max() < 3 * quantizers[1].scale
    codes = found / quantizers[1].scale
    assert torch.equal(codes, codes.round())


def test_the_shared_range_holds_both_tensors():
    x = images()
    wrapped = calibrated(Net(SHARED["cat"]).eval(), x, preset="WC8SYMP2_AT8SYMP2", bias_calibration_factor=0)
    with torch.no_grad():
        model = Net(SHARED["cat"])
        largest = max(float(model.small(x).abs().max()), float(model.large(x).abs().max()))
    assert 64 * float(wrapped.module.quantization.tensors["small"].scale) < largest
    assert largest <= 129 * float(wrapped.module.quantization.tensors["small"].scale)


def test_sums_and_means_get_ranges_of_their_own():
    wrapped = calibrated(Net(lambda m, a, b: (a + b).mean((2, 3))).eval(), images())
    names = [quantizer.name for quantizer in wrapped.module.quantizers()]
    assert names == ["x", "small", "large", "add", "mean"]
    scales = [float(quantizer.scale) for quantizer in wrapped.module.quantizers()]
    assert scales[1] < scales[2] / 5


FIXED = {
    "sigmoid": (torch.sigmoid, 2.0**-8, 0, 2.0**-8, 0),
    "hardsigmoid": (F.hardsigmoid, 2.0**-8, 0, 2.0**-8, 0),
    "softmax": (lambda a: F.softmax(a, 1), 2.0**-8, 0, 2.0**-8, 0),
    "tanh": (torch.tanh, 2.0**-7, 128, 2.0**-7, 0),
}  # scale and zero point: affine, symmetric


@pytest.mark.parametrize("name", FIXED)
def test_known_ranges_are_never_observed(name):
    function, scale, zero_point, symmetric_scale, symmetric_zero_point = FIXED[name]
    for preset, expected in (
        ("WC8_AT8", (scale, zero_point)),
        ("WC8SYMP2_AT8SYMP2", (symmetric_scale, symmetric_zero_point)),
    ):
        model = Net(lambda m, a, b: function(b)).eval()
        wrapped = calibrated(model, images() * 0.01, preset=preset)  # small values do not shrink it
        quantizer = wrapped.module.quantizers()[-1]
        assert (float(quantizer.scale), int(quantizer.zero_point)) == expected
        assert quantizer.observer is None
        (found,) = assert_exact(wrapped, images())
        assert found.min() >= (-1 if name == "tanh" else 0)
        assert found.max() <= 1


def test_a_known_range_is_kept_where_it_is_joined_with_another():
    wrapped = calibrated(Net(lambda m, a, b: torch.cat([a.sigmoid(), b], 1)).eval(), images())
    assert float(wrapped.module.quantization.tensors["sigmoid"].scale) == 1 / 256
    joined = wrapped.module.quantization.tensors["cat"]
    assert joined.observer is not None
    assert float(joined.scale) > 1 / 256
    assert_exact(wrapped, images())
    both = calibrated(Net(lambda m, a, b: torch.cat([a.sigmoid(), b.sigmoid()], 1)).eval(), images())
    assert float(both.module.quantizers()[-1].scale) == 1 / 256  # two of the same known range


def test_rules_choose_by_name_type_and_pattern():
    rules = QConfigMapping().set_global("WC8_AT8").set_module_name("small", "WC4_AT8")
    rules.set_object_type("add", None).set_module_name_regex("he.d", "WC8SYMP2_AT8SYMP2")
    wrapped = calibrated(Net(lambda m, a, b: m.head(torch.cat([a + b, b], 1))).eval(), images(), preset=rules.qconfig())
    layers = {layer.site.name: layer for layer in wrapped.module.quantized_layers()}
    assert [layers[name].weight_quantizer.spec.bits for name in ("small", "large", "head")] == [4, 8, 8]
    assert not layers["large"].site.target.spec.symmetric
    assert layers["head"].site.target.spec.symmetric
    assert wrapped.module.reasons["add"] == "stays float by the rule for 'add'"
    assert_exact(wrapped, images())


def test_a_layer_left_in_float_computes_in_float():
    rules = QConfigMapping().set_global("WC8_AT8").set_module_name("small", None)
    model = Net(lambda m, a, b: (a, b)).eval()
    wrapped = calibrated(model, images(), preset=rules.qconfig())
    assert type(wrapped.module.small) is nn.Conv2d
    found = assert_exact(wrapped, images())
    quantized_input = wrapped.module.quantization.tensors["x"](images())
    assert torch.equal(found[0], model.small(quantized_input))


def test_mixed_precision_marks_input_first_convolution_and_last_linear_layer():
    wrapped = edgeq.PTCFxModule(network("residual"), "WC4_AT8+WC8SYMP2_AT8SYMP2").calibrate(batches(1))
    bits = {layer.site.name: layer.weight_quantizer.spec.bits for layer in wrapped.module.quantized_layers()}
    assert bits == {"conv1": 8, "conv2": 4, "fc": 8}
    symmetric = {quantizer.name: quantizer.spec.symmetric for quantizer in wrapped.module.quantizers()}
    assert [name for name, value in symmetric.items() if value] == ["x"]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys, self.values, self.to_out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.a = nn.ModuleDict({"b_c": nn.Linear(4, 4)})
        self.a_b = nn.ModuleDict({"c": nn.Linear(4, 4)})

    def forward(self, x):
        y = self.keys(x).to(torch.float32) + self.values(x)
        return self.to_out(self.a["b_c"](y) + self.a_b["c"](y))


def test_names_that_clash_with_each_other_or_with_methods_of_modules_are_made_unique():
    model = Named().eval()
    wrapped = calibrated(model, images(8, 4))
    names = [quantizer.name for quantizer in wrapped.module.quantizers()]
    assert names == ["x", "keys_1", "values_1", "add", "a_b_c", "a_b_c_1", "add_1", "to_out"]
    assert_exact(wrapped, images(8, 4))
    assert relative_error(wrapped(images(8, 4)), model(images(8, 4))) < 0.03


def test_masks_are_left_out_of_ranges():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, mask):
            scores = self.query(x) @ self.key(x).mT
            first = scores.masked_fill(mask, float("-inf")).softmax(-1)
            return first, torch.where(mask, -1e9, scores).softmax(-1), first @ x

    torch.manual_seed(0)
    model, x = Attention().eval(), images(2, 4, 8)
    mask = torch.ones(4, 4).triu(1).bool()
    wrapped = calibrated(model, x, mask)
    found = assert_exact(wrapped, x, mask)
    assert (found[0] - model(x, mask)[0]).abs().max() < 0.02
    assert torch.equal(found[0], found[1])
    assert found[0][:, mask].abs().max() == 0
    assert wrapped.module.reasons["masked_fill"].startswith("stays float: it holds numbers that mark places")
