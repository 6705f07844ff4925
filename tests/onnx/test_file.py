"""What leaves the house: the content of a QDQ file, against section by section of what is promised of it."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import edgeq
from edgeq.modules.integer import IntegerLayer
from tests.networks import NETWORKS
from tests.onnx.ort import calibrated, converted, exported, image, nodes_of, numbers, producers, readers

TARGETS = ("Conv", "Gemm", "MatMul")
CLUTTER = {"Cast", "Identity", "Constant", "Dropout", "Shape", "Gather", "ConstantOfShape", "Unsqueeze", "Flatten"}
every_network = pytest.mark.parametrize("name", NETWORKS)
both_exporters = pytest.mark.parametrize("opset", [17, 18])


def layers(name, preset="DEFAULT"):
    module = converted(name, preset).module
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, IntegerLayer)}


def axis_of(node):
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)


@both_exporters
@every_network
def test_weights_are_int8_initializers_dequantized_along_their_output_channels(name, opset):
    model = exported(name, opset_version=opset)
    tensors, made = numbers(model), producers(model)
    weighted = [
        node for node in model.graph.node if node.op_type in TARGETS and made[node.input[1]].input[0] in tensors
    ]
    assert len(weighted) == len(layers(name)) == {"residual": 3, "separable": 5, "attention": 6}[name]
    for node in weighted:
        dequantizer = made[node.input[1]]
        path = dequantizer.input[0].removesuffix(".transposed").removesuffix(".weight")
        layer = layers(name)[path]
        transposed = node.op_type == "MatMul"
        weight, scale, zero_point = (tensors[value] for value in dequantizer.input)
        assert weight.dtype == zero_point.dtype == np.int8
        assert np.array_equal(weight.T if transposed else weight, layer.weight.numpy())
        assert axis_of(dequantizer) == int(transposed)
        assert np.array_equal(scale, layer.weight_scale.numpy())
        assert scale.dtype == np.float32
        assert scale.shape == zero_point.shape == (layer.weight.shape[0],)
        assert not zero_point.any()


@both_exporters
@every_network
def test_biases_are_int32_at_exactly_input_scale_times_weight_scale(name, opset):
    model = exported(name, opset_version=opset)
    tensors = numbers(model)
    for path, layer in layers(name).items():
        (dequantizer,) = readers(model, f"{path}.bias")
        bias, scale, zero_point = (tensors[value] for value in dequantizer.input)
        assert bias.dtype == zero_point.dtype == np.int32
        assert np.array_equal(bias, layer.bias.numpy())
        assert np.array_equal(scale, np.float32(layer.source.scale) * layer.weight_scale.numpy())
        assert not zero_point.any()


@both_exporters
@every_network
def test_each_integer_tensor_has_one_pair_with_scales_of_no_dimension(name, opset):
    model = exported(name, opset_version=opset)
    tensors = numbers(model)
    quantizers = nodes_of(model, "QuantizeLinear")
    assert len(quantizers) == len(converted(name).module.tensors)
    for node in quantizers:
        path = node.output[0].removesuffix("/codes")
        assert node.output[0].endswith("/codes")
        assert list(node.input[1:]) == [f"{path}_scale", f"{path}_zero_point"]
        assert tensors[f"{path}_scale"].shape == tensors[f"{path}_zero_point"].shape == ()
        (dequantizer,) = readers(model, node.output[0])
        assert dequantizer.op_type == "DequantizeLinear"
        assert list(dequantizer.input[1:]) == list(node.input[1:])
        assert axis_of(node) is axis_of(dequantizer) is None


@pytest.mark.parametrize("preset", ["DEFAULT", "WC8SYMP2_AT8SYMP2"])
@every_network
def test_scales_are_the_same_numbers_in_checkpoint_converted_module_and_file(name, preset):
    saved, integers = calibrated(name, preset).module.state_dict(), converted(name, preset).module.state_dict()
    tensors = numbers(exported(name, preset))
    compared = 0
    for key, value in saved.items():
        path = key.removeprefix("quantization.tensors.").removesuffix(".scale")
        if key.startswith("quantization.tensors.") and key.endswith(".scale") and f"{path}_scale" in tensors:
            assert np.array_equal(tensors[f"{path}_scale"], value.numpy())
            assert int(tensors[f"{path}_zero_point"]) == int(saved[key.replace(".scale", ".zero_point")])
            compared += 1
    assert compared >= 4
    for path, layer in layers(name, preset).items():
        in_file = [f"{path}.weight_scale", f"{path}.weight.transposed_scale"]
        scale = next(tensors[key] for key in in_file if key in tensors)
        assert np.array_equal(scale, integers[f"{path}.weight_scale"].numpy())
        assert np.array_equal(scale, saved[f"{path}.weight_quantizer.scale"].numpy())
        assert np.array_equal(tensors[f"{path}_scale"], layer.target.scale.numpy())


@both_exporters
def test_nothing_lies_between_a_convolution_and_the_activation_that_it_absorbs(opset):
    model = exported("separable", opset_version=opset)
    for path, kinds in [("stem.0", ["Relu"]), ("depth.0", ["Relu"]), ("project.0", [])]:
        node, chain = producers(model)[f"{path}/codes"], []
        while node.op_type != "Conv":
            node = producers(model)[node.input[0]]
            chain.append(node.op_type)
        assert chain == [*kinds, "Conv"]


@both_exporters
@pytest.mark.parametrize("dynamic", [False, True])
@every_network
def test_there_is_no_clutter(name, dynamic, opset):
    model = exported(name, dynamic_batch=dynamic, opset_version=opset)
    assert not {node.op_type for node in model.graph.node} & CLUTTER
    read = {value for node in model.graph.node for value in node.input}
    assert set(numbers(model)) <= read
    assert not model.functions
    assert {entry.domain for entry in model.opset_import} == {""}


@both_exporters
@every_network
def test_every_value_has_its_inferred_type_and_shape(name, opset):
    model = exported(name, opset_version=opset)
    known = {info.name: info.type.tensor_type for info in model.graph.value_info}
    for node in model.graph.node:
        for value in node.output:
            if value != "output":
                assert known[value].elem_type in (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8)
                assert all(size.dim_value > 0 for size in known[value].shape.dim), value
    sizes = [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == [4, 5]


@both_exporters
def test_inputs_and_outputs_have_the_users_names(opset):
    model = exported("residual", opset_version=opset, input_names=("image",), output_names=("logits",))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    model = exported("residual", opset_version=opset)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "output"]


@both_exporters
@every_network
def test_nodes_and_initializers_are_named_after_modules(name, opset):
    model = exported(name, opset_version=opset)
    modules = [path for path, _ in converted(name).module.named_modules() if path and "quantization" not in path]
    owners = [*modules, *(tensor.output[0].removesuffix("/codes") for tensor in nodes_of(model, "QuantizeLinear"))]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    for node in model.graph.node:
        assert node.name.split("/")[0] in owners
        assert re.fullmatch(rf".+/{node.op_type}(_\d+)?", node.name)
    for initializer in numbers(model):
        assert any(initializer.startswith((f"{owner}.", f"{owner}_", f"{owner}/")) for owner in owners), initializer


@both_exporters
@pytest.mark.parametrize("kind", ["qdq", "integer"])
def test_the_file_says_what_made_it(kind, opset):
    model = exported("residual", "WC8P2_AT8P2", kind, opset_version=opset)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == {
        "edgeq.version": edgeq.__version__,
        "edgeq.preset": "WC8P2_AT8P2",
        "edgeq.backend": "qnnpack",
        "edgeq.format": kind,
    }
    assert (model.producer_name, model.producer_version) == ("edgeq", edgeq.__version__)


@pytest.mark.parametrize("opset", [13, 17, 18])
@every_network
def test_no_source_path_is_anywhere_in_the_bytes(name, opset):
    data = exported(name, opset_version=opset).SerializeToString()
    checkout = str(Path(edgeq.__file__).parents[1]).encode()
    for trace in (checkout, b"site-packages", str(Path.home()).encode() + b"/", str(Path.cwd()).encode(), b"torch/nn"):
        assert trace not in data
    assert re.search(rb"\w\.py\b", data) is None
    assert b"pkg." not in data


def test_a_large_networks_file_is_about_a_quarter_of_its_float_weights(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU(), torch.nn.Conv2d(128, 256, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    wrapped = edgeq.PTCFxModule(model).calibrate([x])
    result = wrapped.export(x, tmp_path / "model.onnx")
    in_float = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert result.bytes == (tmp_path / "model.onnx").stat().st_size
    assert 0.25 < result.bytes / in_float < 0.27


def test_the_checker_passes_a_file_in_full(tmp_path):
    for name in NETWORKS:
        onnx.checker.check_model(exported(name), full_check=True)
        onnx.checker.check_model(exported(name, kind="integer"), full_check=True)
    assert exported("residual").ir_version == 8
    assert image().shape == (4, 3, 16, 16)
