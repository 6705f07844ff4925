"""The rewriter from QDQ to integer operators, on graphs written by hand: the same numbers, or nothing changes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgeq.errors import ExportError
from edgeq.onnx.integer import to_integer
from tests.onnx.hand import Hand
from tests.onnx.ort import nodes_of, numbers, run

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8)
BIAS = RANDOM.integers(-3000, 3000, 4, dtype=np.int32)
SCALES = np.float32([0.02, 0.05, 0.01, 0.03])
X = torch.from_numpy(RANDOM.normal(size=(2, 3, 6, 6)).astype(np.float32) * 4)


def both(hand: Hand, output: str, x: torch.Tensor = X) -> tuple[onnx.ModelProto, dict, dict]:
    """The integer model, and what it and the QDQ model compute without any fusion."""
    integer = ir.to_proto(to_integer(hand.model(output, tuple(x.shape))))
    onnx.checker.check_model(integer, full_check=True)
    before, after = run(hand.proto(output, tuple(x.shape)), x, fused=False), run(integer, x, fused=False)
    return integer, before, after


def convolution(hand: Hand, bias: bool = True) -> str:
    hand.q("x", "x", 1 / 16, np.uint8(120))
    inputs = [hand.dq("x"), hand.weight("w", WEIGHT, SCALES)]
    if bias:
        inputs.append(hand.weight("b", BIAS, SCALES * np.float32(1 / 16)))
    return hand.node("Conv", inputs, pads=[1, 1, 1, 1])


def close(before: np.ndarray, after: np.ndarray) -> bool:
    """Equal but for ties, which float sums and integer sums may break differently."""
    steps = np.abs(before.astype(int) - after.astype(int))
    return steps.max() <= 1 and np.count_nonzero(steps) <= 0.002 * steps.size + 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_becomes_one_operator_that_holds_all_its_numbers(bias):
    hand = Hand()
    hand.q(convolution(hand, bias), "y", 0.25, np.uint8(128))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert [node.op_type for node in integer.graph.node] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    assert close(before["y/codes"], after["y/codes"])
    (node,) = nodes_of(integer, "QLinearConv")
    assert node.name == "y/QLinearConv"
    assert list(node.input) == [
        "x/codes", "x_scale", "x_zero_point", "w", "w_scale", "w_zero", "y_scale", "y_zero_point", *["b"] * bias
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "zero_point", "clip"),
    [
        (0.0, None, 0, None),  # a ReLU whose bound the type implies
        (0.0, None, 100, (100, None)),
        (0.0, 6.0, 0, (None, 24)),
        (-2.0, 2.0, 128, (120, 136)),
        (0.0, 100.0, 0, None),  # beyond the type
        (None, 3.0, 10, (None, 22)),
    ],
)
def test_bounds_become_a_clip_of_codes_only_where_the_type_does_not_imply_them(low, high, zero_point, clip):
    hand = Hand()
    y = convolution(hand)
    if (low, high) == (0.0, None):
        y = hand.node("Relu", [y])
    else:
        bounds = [("" if end is None else hand.constant(f"end{end}", np.float32(end))) for end in (low, high)]
        y = hand.node("Clip", [y, *bounds])
    hand.q(y, "y", 0.25, np.uint8(zero_point))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert close(before["y/codes"], after["y/codes"])
    clips = nodes_of(integer, "Clip")
    if clip is None:
        assert clips == []
    else:
        tensors = numbers(integer)
        ends = [int(tensors[name]) if name else None for name in (*clips[0].input[1:], "")[:2]]
        assert tuple(ends) == clip
        assert {tensors[name].dtype for name in clips[0].input[1:] if name} == {np.dtype(np.uint8)}
    assert nodes_of(integer, "Relu") == []


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [((0, None), (-2, 6), (0, 6)), ((-2, 6), (0, None), (0, 6)), ((-9, 9), (-1, 2), (-1, 2)), ((3, 5), (0, 4), (3, 4))],
)
def test_of_two_activation_functions_in_a_row_the_narrower_bounds_hold(inner, outer, expected):
    hand = Hand()
    y = convolution(hand)
    for ends in (inner, outer):
        y = hand.node(
            "Clip", [y, *("" if end is None else hand.constant(f"end{end}", np.float32(end)) for end in ends)]
        )
    hand.q(y, "y", 0.25, np.uint8(100))
    _, before, after = both(hand, hand.dq("y", "out"))
    assert close(before["y/codes"], after["y/codes"])
    assert (after["out"].min(), after["out"].max()) == expected


def test_a_bound_that_is_computed_is_an_error_and_not_left_out():
    hand = Hand()
    bound = hand.node("Abs", [hand.constant("end", np.float32(6))])
    hand.q(hand.node("Clip", [convolution(hand), "", bound]), "y", 0.25, np.uint8(0))
    with pytest.raises(ExportError, match=f"'{bound}' must be a constant of the file, and is computed"):
        to_integer(hand.model(hand.dq("y", "out"), tuple(X.shape)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_becomes_an_integer_product_with_an_integer_bias_and_one_factor(bias, transposed):
    hand = Hand()
    weight = RANDOM.integers(-127, 128, (6, 5), dtype=np.int8)
    scales = np.float32(RANDOM.uniform(0.01, 0.05, 5))
    codes = np.ascontiguousarray(weight.T) if transposed else weight
    hand.q("x", "x", 1 / 16, np.uint8(120))
    inputs = [hand.dq("x"), hand.weight("w", codes, scales, axis=int(not transposed))]
    if bias:
        inputs.append(hand.weight("b", np.int32([100, -200, 300, 4000, 5]), scales / np.float32(16)))
    hand.q(hand.node("Gemm", inputs, transB=int(transposed)), "y", 0.25, np.uint8(128))
    integer, before, after = both(hand, hand.dq("y", "out"), X.reshape(-1, 6))
    kinds = ["MatMulInteger", *["Add"] * bias, "Cast", "Mul", "QuantizeLinear"]
    assert [node.op_type for node in integer.graph.node][1:-1] == kinds
    assert close(before["y/codes"], after["y/codes"])
    tensors = numbers(integer)
    assert np.array_equal(tensors["y.factor"], np.float32(1 / 16) * scales / np.float32(0.25))
    assert np.array_equal(tensors["y.weight_integer"], weight)
    assert tensors["y.one"] == np.float32(1)


def test_a_gemm_with_factors_of_its_own_stays_as_it_is():
    hand = Hand()
    hand.q("x", "x", 1 / 16, np.uint8(120))
    y = hand.node("Gemm", [hand.dq("x"), hand.weight("w", WEIGHT.reshape(6, 18), np.float32(0.1))], alpha=0.5)
    hand.q(y, "y", 0.25, np.uint8(128))
    integer, before, after = both(hand, hand.dq("y", "out"), X.reshape(-1, 6))
    assert len(nodes_of(integer, "Gemm")) == 1
    assert np.array_equal(before["y/codes"], after["y/codes"])


def test_signed_activations_become_unsigned_ones_that_stand_for_the_same_numbers():
    hand = Hand()
    hand.q("x", "x", 1 / 16, np.int8(0))
    y = hand.node("Conv", [hand.dq("x"), hand.weight("w", WEIGHT, SCALES)])
    hand.q(y, "y", 0.25, np.int8(0))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert after["x/codes"].dtype == after["y/codes"].dtype == np.uint8
    assert np.array_equal(before["x/codes"].astype(int) + 128, after["x/codes"])
    assert close(before["y/codes"].astype(int) + 128, after["y/codes"])
    assert numbers(integer)["w"].dtype == np.int8


@pytest.mark.parametrize("axis", [1, 2])
def test_a_concatenation_of_equal_parameters_works_on_codes(axis):
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(7))
    parts = [hand.node("Transpose", [hand.dq("x")], perm=[0, 1, 3, 2]), hand.dq("x")]
    hand.q(hand.node("Concat", parts, axis=axis), "y", 0.5, np.uint8(7))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert [node.op_type for node in integer.graph.node].count("DequantizeLinear") == 1
    assert len(nodes_of(integer, "QuantizeLinear")) == 1
    assert np.array_equal(before["y/codes"], after["y/codes"])


@pytest.mark.parametrize(("scale", "zero_point"), [(0.25, 7), (0.5, 8)])
def test_a_move_between_different_parameters_stays_between_dq_and_q(scale, zero_point):
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(7))
    hand.q(hand.node("Transpose", [hand.dq("x")], perm=[0, 1, 3, 2]), "y", scale, np.uint8(zero_point))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert len(nodes_of(integer, "QuantizeLinear")) == 2
    assert np.array_equal(before["y/codes"], after["y/codes"])


@pytest.mark.parametrize(("value", "moved"), [(0.0, True), (1.0, False)])
def test_padding_with_zero_pads_codes_with_the_zero_point_and_any_other_padding_stays(value, moved):
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(7))
    pads = hand.constant("pads", np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    hand.q(hand.node("Pad", [hand.dq("x"), pads, hand.constant("value", np.float32(value))]), "y", 0.5, np.uint8(7))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert len(nodes_of(integer, "QuantizeLinear")) == (1 if moved else 2)
    assert np.array_equal(before["y/codes"], after["y/codes"])
    assert after["y/codes"][0, 0, 0, 0] == 7 + value / 0.5


def test_a_move_that_somebody_else_reads_in_float_stays():
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(7))
    moved = hand.node("Transpose", [hand.dq("x")], perm=[0, 1, 3, 2])
    hand.q(moved, "y", 0.5, np.uint8(7))
    integer, before, after = both(hand, hand.node("Add", [hand.dq("y"), moved], "out"))
    assert len(nodes_of(integer, "QuantizeLinear")) == 2
    assert np.array_equal(before["out"], after["out"])


def test_a_product_of_two_activations_is_one_operator():
    hand = Hand()
    hand.q("x", "x", 1 / 16, np.uint8(120))
    hand.q(hand.node("Transpose", ["x"], perm=[0, 1, 3, 2]), "t", 1 / 8, np.uint8(130))
    hand.q(hand.node("MatMul", [hand.dq("x"), hand.dq("t")]), "y", 0.5, np.uint8(128))
    integer, before, after = both(hand, hand.dq("y", "out"))
    assert len(nodes_of(integer, "QLinearMatMul")) == 1
    assert nodes_of(integer, "MatMul") == []
    assert np.array_equal(before["y/codes"], after["y/codes"])  # powers of two: no sum is rounded
