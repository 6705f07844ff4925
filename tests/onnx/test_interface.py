"""Several inputs, several outputs, containers of them, and sizes that a model reads from its input."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.errors import ExportError
from tests.onnx.ort import calibrated_on, image, nodes_of, run, written

both_exporters = pytest.mark.parametrize("opset", [17, 18])


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """Two convolutions; what `forward` makes of them is each test's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)


def names(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


class TwoInputs(Model):
    def forward(self, left, right):
        return self.a(left) + self.b(right)


@both_exporters
def test_each_input_has_its_arguments_name_and_its_own_batch_dimension(opset):
    module = calibrated_on(TwoInputs(), image(), image(seed=3)).convert()
    file = written(module, (image(), image(seed=3)), opset_version=opset, dynamic_batch=True)
    assert names(file) == (["left", "right"], ["output"])
    dimensions = [value.type.tensor_type.shape.dim[0].dim_param for value in (*file.graph.input, *file.graph.output)]
    assert dimensions == ["batch", "batch", "batch"]
    others = image(7, 5), image(7, 6)
    assert np.array_equal(run(file, *others, fused=True)["output"], module(*others).numpy())


def test_inputs_that_are_missing_or_too_many_are_an_error_that_lists_them(tmp_path):
    wrapped = calibrated_on(TwoInputs(), image(), image())
    for given in (image(), (image(),) * 3):
        count = len(given) if isinstance(given, tuple) else 1
        with pytest.raises(ExportError, match=rf"takes 2 inputs \(left, right\), got {count}"):
            wrapped.export(given, tmp_path / "model.onnx")


class OptionalInput(Model):
    def forward(self, x, offset=0.5):
        return self.a(x) + offset


def test_an_input_with_a_default_may_be_left_out():
    file = written(calibrated_on(OptionalInput(), image()), image())
    assert names(file) == (["x"], ["output"])


class DictInput(Model):
    def forward(self, batch):
        return self.a(batch["left"]) + self.b(batch["right"])


@both_exporters
def test_tensors_inside_of_a_dict_are_inputs_named_after_it_and_their_key(opset):
    batch = {"left": image(), "right": image(seed=3)}
    module = calibrated_on(DictInput(), batch).convert()
    file = written(module, batch, opset_version=opset)
    assert names(file) == (["batch_left", "batch_right"], ["output"])
    assert np.array_equal(run(file, *batch.values(), fused=False)["output"], module(batch).numpy())


class Several(Model):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.a(x))
        return y, self.b(y)


class InDict(Several):
    def forward(self, x):
        y, z = super().forward(x)
        return {"features": y, "x": z}


class Nested(Several):
    def forward(self, x):
        y, z = super().forward(x)
        return y, [z, {"mean": y.mean((2, 3))}]


class Twice(Model):
    def forward(self, x):
        y = self.a(x)
        return y, y


OUTPUTS = [
    (Several, ["output_0", "output_1"]),
    (InDict, ["features", "output_x"]),  # one name cannot be an input's and an output's
    (Nested, ["output_0", "output_1_0", "output_1_1_mean"]),
    (Twice, ["output_0", "output_1"]),
]


@pytest.mark.parametrize(("kind", "opset"), [("qdq", 17), ("integer", 17), ("qdq", 18)])
@pytest.mark.parametrize(("model", "expected"), OUTPUTS)
def test_every_output_is_there_under_its_key_also_one_that_is_read_on(model, expected, kind, opset):
    module = calibrated_on(model(), image()).convert()
    file = written(module, image(), opset_version=opset, format=kind)
    assert names(file) == (["x"], expected)
    found = run(file, image(), fused=True)
    results = torch.utils._pytree.tree_leaves(module(image()))
    for name, result in zip(expected, results, strict=True):
        assert np.array_equal(found[name], result.numpy()), name
    assert len(nodes_of(file, "Identity")) == (model is Twice)


def test_names_for_several_outputs_are_given_in_their_order():
    file = written(calibrated_on(Several(), image()), image(), output_names=["low", "high"])
    assert names(file) == (["x"], ["low", "high"])


class Sizes(Model):
    def forward(self, x):
        batch, _, height, width = x.shape
        y = F.relu(self.b(x)).view(batch, 2, 2, height, width).transpose(1, 2).reshape(batch, -1, height * width)
        return F.interpolate(y.reshape(batch, 4, height, width), size=(height * 2, width * 2))


class Pairs(Model):
    def forward(self, x):
        y = self.b(x)
        return y.reshape(y.shape[0] * 2, y.shape[1] // 2, y.shape[2], y.size(3)).flatten(1)


ARITHMETIC = {"Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Cast", "Mul", "Div", "ConstantOfShape"}


@both_exporters
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("model", "allowed"), [(Sizes, {"Shape", "Slice", "Concat"}), (Pairs, set())])
def test_sizes_that_follow_from_the_input_are_numbers_in_the_file(model, allowed, dynamic, opset):
    module = calibrated_on(model(), image()).convert()
    file = written(module, image(), opset_version=opset, dynamic_batch=dynamic)
    arithmetic = {node.op_type for node in file.graph.node} & ARITHMETIC
    assert arithmetic <= (allowed if dynamic else set())  # a resize has no way to leave the batch open
    x = image(6) if dynamic else image()
    assert np.array_equal(run(file, x, fused=False)["output"], module(x).numpy())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(10, 6), nn.Linear(6, 4)

    def forward(self, ids):
        return self.linear(self.table(ids))


@both_exporters
def test_an_input_of_integers_stays_one(opset):
    ids = torch.arange(8).reshape(2, 4)
    module = calibrated_on(Tokens(), ids).convert()
    file = written(module, ids, opset_version=opset)
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert np.array_equal(run(file, ids, fused=False)["output"], module(ids).numpy())
