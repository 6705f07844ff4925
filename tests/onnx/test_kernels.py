"""ONNX Runtime runs the files in integers: its optimized graph, written by the runtime itself, is counted."""

import pytest

from edgeq.onnx.kernels import Kernels, kernels_of
from tests.onnx.ort import converted, exported, image, optimized
from tests.test_presets import CALIBRATED

FLOAT = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
EXPECTED = {
    "residual": {"QLinearConv": 2, "QLinearAdd": 1, "QLinearAveragePool": 1, "QGemm": 1},
    "separable": {"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "attention": {"QLinearConv": 1, "QLinearAdd": 2, "QLinearMatMul": 2, "QLinearSoftmax": 1, "QGemm": 5},
}
PRODUCTS = {"residual": 3, "separable": 5, "attention": 8}


@pytest.mark.parametrize("preset", CALIBRATED)
@pytest.mark.parametrize("name", EXPECTED)
def test_no_product_is_left_in_float_and_the_integer_kernels_are_the_expected_ones(name, preset):
    counts = optimized(exported(name, preset))
    # The runtime has no kernel for sums of signed codes: it adds the numbers that they stand for.
    signed = name == "attention" and "SYM" in preset
    expected = {kind: number for kind, number in EXPECTED[name].items() if not (signed and kind == "QLinearAdd")}
    assert {kind: counts[kind] for kind in expected} == expected
    assert sum(counts[kind] for kind in FLOAT) == 0


@pytest.mark.parametrize("preset", ["DEFAULT", "WC8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", EXPECTED)
def test_an_integer_file_leaves_no_product_in_float_either(name, preset):
    counts = optimized(exported(name, preset, "integer"))
    integer = sum(counts[kind] for kind in ("QLinearConv", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"))
    assert integer == PRODUCTS[name]
    assert sum(counts[kind] for kind in FLOAT) == 0


@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_dynamic_batch_costs_no_integer_kernel(name, kind):
    kernels = kernels_of(exported(name, kind=kind, dynamic_batch=True))
    assert (kernels.integer_products, kernels.float_products) == (PRODUCTS[name], 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_result_counts_as_the_runtime_does(name, tmp_path):
    result = converted(name).export(image(), tmp_path / "model.onnx")
    assert result.kernels.counts == dict(optimized(exported(name)))
    assert result.kernels.integer_products == PRODUCTS[name]
    assert f"runs {PRODUCTS[name]} of {PRODUCTS[name]} products in integers" in str(result)


def test_without_verification_nothing_is_compared_or_counted(tmp_path):
    result = converted("residual").export(image(), tmp_path / "model.onnx", verify=False)
    assert (result.parity, result.kernels) == ([], None)


def test_products_in_float_are_counted_as_such():
    kernels = Kernels({"Conv": 2, "FusedGemm": 1, "QLinearConv": 4, "MatMulIntegerToFloat": 1, "Relu": 9})
    assert (kernels.integer_products, kernels.float_products) == (5, 3)
    assert str(kernels).startswith("ONNX Runtime runs 5 of 8 products in integers: 2 Conv, 1 FusedGemm, ")
