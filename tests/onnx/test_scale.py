"""What an export does beside PyTorch's exporter takes time in proportion to the layers; long chains export."""

import onnx_ir as ir
import torch
from onnx_ir.passes import common

import edgeq
from edgeq.onnx.capture import capture, tensor_names
from edgeq.onnx.finish import finish
from edgeq.onnx.integer import to_integer
from edgeq.onnx.session import with_unsigned_weights
from edgeq.onnx.specialize import specialize
from edgeq.onnx.verify import compare
from tests.graph.scale import assert_linear, calls, network
from tests.graph.test_depth import LAYERS, chain


def converted(model, x):
    wrapped = edgeq.PTCFxModule(model, bias_calibration_factor=0).train()
    wrapped(x)
    return wrapped.eval().convert()


def test_every_pass_takes_time_in_proportion_to_the_layers():
    def costs(blocks):
        model, x = network("transformer", blocks)
        module = converted(model, x).module
        captured = capture(module, (x,), 17, False, None, None)
        found = {"names": calls(lambda: tensor_names(module)), "finish": calls(lambda: finish(captured))}
        common.ShapeInferencePass()(captured.model)
        made = {}
        found["to protobuf"] = calls(lambda: made.update(qdq=ir.to_proto(captured.model)))
        found["comparison"] = calls(lambda: compare(module, made["qdq"], (x,)))
        found["integer"] = calls(lambda: to_integer(captured.model))
        common.ShapeInferencePass()(captured.model)
        integer = ir.to_proto(captured.model)
        found["unsigned weights"] = calls(lambda: with_unsigned_weights(integer))
        found["sizes"] = calls(lambda: specialize(module, (x,), dynamic_batch=True))
        return found

    assert_linear(costs, 3)


def test_a_chain_longer_than_recursion_could_follow_is_exported(tmp_path):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = converted(chain(), x).export(x, tmp_path / "model.onnx")
    assert result.passed
    assert result.nodes["Conv"] == 1 + LAYERS
