"""conv -> operation -> conv in every spelling: what lies between the layers stays integers, or is a float island that
the table of operators gives a reason for.
"""

import pytest
from torch import nn

from edgeq.modules.codes import Dequantize, Quantize
from edgeq.modules.pair import IntegerPair
from tests.graph.coverage_cases import ABSORBED, COMPUTED, ISLANDS, LAYERS, MOVED, STEPS, Between, inputs
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, relative_error

COUNTS = dict.fromkeys((*MOVED.split(), *ABSORBED.split()), 0)
COUNTS |= dict.fromkeys(COMPUTED.split(), 1) | STEPS
JUMPS = (  # a step of the input may be a whole number more
    *(
        "floor",
        "ceil",
        "round",
        "trunc",
        "fix",
        "frac",
        "sign()",
        "sign(h)",
        "sgn",
        "hardshrink",
        "Hardshrink",
        "1.0,h",
    ),
)
OPSET_18 = (  # what PyTorch's exporter for opset 17 cannot write
    *("roll(h,1)", "tile", "take_along_dim", "tensor_split", "hsplit", "vsplit", "dsplit", "nearest-exact", "diag"),
    *("select_scatter", "slice_scatter", "exp2", "expm1", "erfc", "sinc", "sinh", "cosh", "asinh", "atanh", "trunc"),
    *("fix", "sgn", "frac", "hreshold", "nansum", "old(", "esponse", "nan_to_num", "logcumsumexp", "dist(", "inner("),
)
OPSET_17 = (  # what the one for opset 18 cannot, or merges because it is there twice
    *("squeeze(0)", "squeeze_(0)", "masked_select", "rrelu", "RReLU", "cdist", "mse_loss"),
    *("bmm(h[0]", 'bchw,bchw->b"', "h.exp()/h.exp()"),
)
NO_FILE = (  # what neither can, or what is drawn anew at each call
    *("hstack", "vstack", "dstack", "column_stack", "row_stack", "hypot", "median", "cummax", "cumprod", "fft"),
    *("diagonal_scatter", "linalg.inv", "bessel", "affine_grid", "CrossMapLRN2d", "rand_like"),
)


def prepared(spelling, preset="WC8_AT8"):
    model, x = Between(spelling), inputs()
    return model, x, calibrated(model, x, preset=preset, bias_calibration_factor=0, rewrites=AS_WRITTEN)


@pytest.mark.parametrize("spelling", COUNTS)
def test_between_two_layers_there_are_only_integers(spelling):
    model, x, wrapped = prepared(spelling)
    names = [quantizer.name for quantizer in wrapped.module.quantizers() if quantizer.observed]
    assert len(names) == 3 + COUNTS[spelling]
    assert (names[0], names[1], names[-1]) == ("x", "first", "second")
    assert not any(reason.startswith("stays float") for reason in wrapped.module.reasons.values())
    assert_exact(wrapped, x)
    if not any(name in spelling for name in JUMPS):
        assert relative_error(wrapped(x), model(x)) < 0.05
    modules = list(wrapped.convert().module.modules())
    if COUNTS[spelling] == 0:  # in at the front, out at the back, and out to be compared
        compared = any(sign in spelling for sign in ("<", ">", "dtype"))
        counts = [sum(isinstance(module, kind) for module in modules) for kind in (Quantize, Dequantize)]
        assert counts == [1, 1 + compared]
    else:
        assert any(isinstance(module, Quantize | IntegerPair) for module in modules)


@pytest.mark.parametrize("spelling", LAYERS.split())
def test_a_product_with_parameters_is_a_layer_however_it_is_written(spelling):
    model, x, wrapped = prepared(spelling)
    _, between, _ = wrapped.module.quantized_layers()
    assert between.weight_quantizer.scale.shape == (between.weight.shape[0],)  # a scale for each output
    assert len(wrapped.module.quantizers()) == 4
    assert {id(parameter) for parameter in wrapped.parameters()} == {id(parameter) for parameter in model.parameters()}
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < 0.03


@pytest.mark.parametrize("spelling", ISLANDS)
def test_a_float_island_says_why_it_is_one(spelling):
    model, x, wrapped = prepared(spelling)
    assert f"stays float: {ISLANDS[spelling]}" in wrapped.module.reasons.values()
    first, second = wrapped.module.quantized_layers()
    assert first.site.target.observed
    assert second.site.source.observed
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < 0.05


class Branches(nn.Module):
    """Several networks on one input."""

    def __init__(self, spellings):
        super().__init__()
        self.parts = nn.ModuleList(Between(spelling, seed) for seed, spelling in enumerate(spellings))

    def forward(self, x):
        return [part(x) for part in self.parts]


def written(spellings, opset, preset, path):
    """The result of exporting those of `spellings` that a file of this opset can hold."""
    kept = [spelling for spelling in spellings if not any(name in spelling for name in NO_FILE)]
    unknown = OPSET_18 if opset < 18 else OPSET_17
    kept = [spelling for spelling in kept if not any(name in spelling for name in unknown)]
    wrapped = calibrated(Branches(kept), inputs(), preset=preset, bias_calibration_factor=0)
    return wrapped.convert().export(inputs(), path, opset_version=opset)


def parity_of_moved(spellings, opset, path):
    """With scales that are powers of two a runtime has no choice."""
    result = written(spellings, opset, "WC8SYMP2_AT8SYMP2", path)
    assert [parity.unequal for parity in result.parity] == [0, 0]
    assert [parity.local_error for parity in result.parity] == [0, 0]


def parity_of_computed(spellings, opset, path):
    result = written(spellings, opset, "WC8_AT8", path)
    assert result.passed, str(result)


def test_a_file_moves_the_same_integers(tmp_path):
    parity_of_moved([*MOVED.split(), *ABSORBED.split()][::12], 17, tmp_path / "model.onnx")


def test_a_file_computes_the_same_integers(tmp_path):
    parity_of_computed([*COMPUTED.split()[::12], *list(STEPS)[::12], *list(ISLANDS)[::6]], 17, tmp_path / "model.onnx")


@pytest.mark.sweep
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("start", range(0, len(MOVED.split() + ABSORBED.split()), 40))
def test_a_file_of_every_mover_moves_the_same_integers(start, opset, tmp_path):
    parity_of_moved([*MOVED.split(), *ABSORBED.split()][start : start + 40], opset, tmp_path / "model.onnx")


@pytest.mark.sweep
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("start", range(0, len([*COMPUTED.split(), *STEPS, *ISLANDS]), 40))
def test_a_file_of_every_operation_computes_the_same_integers(start, opset, tmp_path):
    parity_of_computed([*COMPUTED.split(), *STEPS, *ISLANDS][start : start + 40], opset, tmp_path / "model.onnx")
