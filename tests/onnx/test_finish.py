"""The finishing passes, on graphs written by hand and on what the exporters really give."""

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import nn

import edgeq
from edgeq.errors import ExportError
from edgeq.modules import qdq
from edgeq.onnx import finish
from edgeq.onnx.finish import CODES
from tests.onnx.hand import Hand
from tests.onnx.ort import converted, image, run

SHAPE = (2, 3, 4, 4)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_arithmetic_on_known_shapes_is_done_beforehand():
    hand = Hand()
    first = hand.node("Gather", [hand.node("Shape", ["x"]), hand.constant("zero", np.int64(0))])
    size = hand.node("Concat", [hand.node("Unsqueeze", [first, hand.constant("axes", np.int64([0]))]), "rest"], axis=0)
    hand.constant("rest", np.int64([-1]))
    model = hand.model(hand.node("Reshape", ["x", size], "out"), SHAPE)
    finish.fold_constants(model.graph)
    assert kinds(model) == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [2, -1]


def test_arithmetic_on_a_size_that_is_not_known_stays():
    hand = Hand()
    model = hand.model(hand.node("Reshape", ["x", hand.node("Shape", ["x"])], "out"), ("batch", 3))
    finish.fold_constants(model.graph)
    assert kinds(model) == ["Shape", "Reshape"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_transposed_weight_is_stored_transposed_and_its_axis_too(axis):
    hand = Hand()
    codes = np.arange(12, dtype=np.int8).reshape(4, 3)
    weight = hand.weight("w", codes, np.arange(1, (4, 3)[axis] + 1), axis)
    out = hand.node("MatMul", ["x", hand.node("Transpose", [weight], perm=[1, 0])], "out")
    model = hand.model(out, (2, 3))
    finish.transpose_weights(model.graph)
    assert kinds(model) == ["DequantizeLinear", "MatMul"]
    dequantizer = model.graph[0]
    assert dequantizer.attributes["axis"].as_int() == 1 - axis
    assert np.array_equal(dequantizer.inputs[0].const_value.numpy(), codes.T)
    x = image()[0, 0, :2, :3]
    common.RemoveUnusedNodesPass()(model)
    assert np.array_equal(
        run(ir.to_proto(model), x, fused=False)["out"], run(hand.proto(out, (2, 3)), x, fused=False)["out"]
    )


def test_a_weight_that_is_read_twice_is_not_transposed():
    hand = Hand()
    weight = hand.weight("w", np.ones((3, 3), np.int8), np.float32(1))
    turned = hand.node("MatMul", ["x", hand.node("Transpose", [weight], perm=[1, 0])])
    model = hand.model(hand.node("MatMul", [turned, weight], "out"), (2, 3))
    finish.transpose_weights(model.graph)
    assert kinds(model) == ["DequantizeLinear", "Transpose", "MatMul", "MatMul"]


def test_a_tensor_is_dequantized_once():
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(3))
    model = hand.model(hand.node("Add", [hand.dq("x"), hand.dq("x")], "out"), SHAPE)
    finish.join_dequantizers(model.graph)
    assert kinds(model) == ["QuantizeLinear", "DequantizeLinear", "Add"]


@pytest.mark.parametrize("first", [True, False])
def test_the_dequantizer_that_gives_an_output_is_the_one_that_stays(first):
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(3))
    pair = [hand.dq("x", "out"), hand.dq("x", "inner")] if first else [hand.dq("x", "inner"), hand.dq("x", "out")]
    hand.node("Relu", ["inner"], "second")
    assert set(pair) == {"out", "inner"}
    model = hand.model("out", SHAPE)
    finish.join_dequantizers(model.graph)
    assert kinds(model).count("DequantizeLinear") == 1
    assert [value.name for value in model.graph.outputs] == ["out"]
    assert next(node for node in model.graph if node.op_type == "Relu").inputs[0] is model.graph.outputs[0]


def test_the_same_codes_read_in_another_way_keep_their_own_dequantizer():
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(3))
    other = hand.node("DequantizeLinear", ["x/codes", hand.constant("other", np.float32(0.25)), "x_zero_point"])
    model = hand.model(hand.node("Add", [hand.dq("x"), other], "out"), SHAPE)
    finish.join_dequantizers(model.graph)
    assert kinds(model).count("DequantizeLinear") == 2


def test_nodes_are_named_after_the_tensor_that_they_lead_to_and_what_leads_to_none_after_the_output():
    hand = Hand()
    hand.q(hand.node("Relu", [hand.node("Neg", ["x"])]), "block.act", 0.5, np.uint8(3))
    last = hand.node("Neg", [hand.dq("block.act")], "out")
    model = hand.model(last, SHAPE)
    finish.name_nodes(model.graph)
    assert [node.name for node in model.graph] == [
        "block.act/Neg", "block.act/Relu", "block.act/QuantizeLinear", "block.act/DequantizeLinear", "output/Neg"
    ]  # fmt: skip
    assert [value.name for node in model.graph for value in node.outputs] == [
        "block.act/Neg_output", "block.act/Relu_output", f"block.act{CODES}", "block.act/DequantizeLinear_output", "out"
    ]  # fmt: skip


def test_equal_scales_are_not_shared_between_tensors():
    hand = Hand()
    hand.q("x", "x", 0.5, np.uint8(3))
    shared = ["x_scale", "x_zero_point"]
    codes = hand.node("QuantizeLinear", [hand.dq("x"), *shared], f"y{CODES}")
    model = hand.model(hand.node("DequantizeLinear", [codes, *shared], "out"), SHAPE)
    finish.name_parameters(model.graph)
    read = [[value.name for value in node.inputs[1:]] for node in model.graph]
    assert read == [shared, shared, ["y_scale", "y_zero_point"], ["y_scale", "y_zero_point"]]
    assert set(model.graph.initializers) == {*shared, "y_scale", "y_zero_point"}
    assert float(model.graph.initializers["y_scale"].const_value.numpy()) == 0.5


def arithmetic_instead(name, x, scale, zero_point, axis, known=qdq._operation):
    """What a quantizer looks like to an exporter that does not know the operation."""
    if name == "dequantize":
        return known(name, x, scale, zero_point, axis)
    return ((x / scale).round() + zero_point).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("opset", [17, 18])
def test_a_quantizer_that_an_exporter_lost_is_an_error_also_without_verification(opset, tmp_path, monkeypatch):
    monkeypatch.setattr(qdq, "_operation", arithmetic_instead)
    with pytest.raises(ExportError, match="lost 8 quantizers: x, conv1, conv2, add, pool"):
        converted("residual").export(image(), tmp_path / "model.onnx", opset, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_file_needs_itself_is_an_error(tmp_path):
    with pytest.raises(ExportError):
        converted("residual").export(image(), tmp_path / "model.onnx", input_names=["conv1/codes"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [17, 18])
def test_layers_with_equal_integers_and_different_scales_keep_their_own(opset, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        model[2].weight.copy_(5 * model[0].weight)  # the same codes at another scale
        model[2].bias.copy_(model[0].bias)
    wrapped, x = edgeq.PTCFxModule(model, bias_calibration_factor=0), torch.randn(4, 3, 8, 8)
    wrapped.train()
    wrapped(x)
    result = wrapped.eval().export(x, tmp_path / "equal.onnx", opset_version=opset)
    assert result.passed
    layers = [node for node in onnx.load(result.path).graph.node if node.op_type == "Conv"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(result.path).graph.initializer}
    made = {output: node for node in onnx.load(result.path).graph.node for output in node.output}
    first, second = (made[layer.input[1]].input for layer in layers)
    assert first[0] != second[0]
    assert (stored[first[0]] == stored[second[0]]).all()
    assert stored[second[1]] == pytest.approx(5 * stored[first[1]])


def test_a_branch_that_hands_on_what_is_made_outside_of_it_makes_it_again():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 4] x, bool c) => (float[n, m] y) {
        a = Relu(x)
        y = If (c) <
            then_branch = first () => (float[4] z) { axes = Constant <value = int64[1] {0}> () z = Squeeze(a, axes) },
            else_branch = second () => (float[1, 4] b) { b = Identity(a) }
        >
    }
    """
    model = ir.from_onnx_text(text)
    common.IdentityEliminationPass()(model)
    (branch,) = (a.as_graph() for a in model.graph[1].attributes.values() if a.name == "else_branch")
    assert branch.outputs[0].producer().graph is model.graph
    finish.complete_branches(model.graph)
    common.NameFixPass()(model)
    assert [node.op_type for node in branch] == ["Identity"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = np.array([[-1, 2, -3, 4]], dtype=np.float32)
    for condition, shape in ((True, (4,)), (False, (1, 4))):
        (y,) = evaluated(proto, x, condition)
        assert y.shape == shape
        assert y.ravel().tolist() == [0, 2, 0, 4]


def evaluated(proto, x, condition):
    return onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x, "c": np.array(condition)})
