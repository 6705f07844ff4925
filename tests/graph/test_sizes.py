"""A model that looks at sizes is captured for those that lead the same way, and says so of all others."""

import copy
import math

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import ExportError, TraceError
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.graph.test_exported import Looking


def branches(m, x):
    return m.conv(x) if x.shape[2] > 6 else m.conv(x) * 2


def branches_on_one(m, x):
    return m.conv(x) if x.shape[0] == 1 else m.conv(x) * 2


def wants_even(m, x):
    return m.conv(x) if x.shape[3] % 2 == 0 else m.conv(x) * 2


def wants_a_square(m, x):
    return m.conv(x) if x.shape[2] == x.shape[3] else m.conv(x) * 2


def counts_images(m, x):
    return torch.stack([m.conv(x)[index] for index in range(x.shape[0])])


ANOTHER_WAY = {
    (branches, 2): ((2, 3, 5, 8), r"x.shape\[2\] > 6"),
    (branches_on_one, 2): ((1, 3, 8, 8), r"x.shape\[0\] != 1|Ne|not"),
    (branches_on_one, 1): ((2, 3, 8, 8), r"x.shape\[0\] == 1"),
    (wants_even, 2): ((2, 3, 8, 7), r"x.shape\[3\] % 2\)? == 0"),
    (wants_a_square, 2): ((2, 3, 8, 6), r"x.shape\[3\] == x.shape\[2\]|x.shape\[2\] == x.shape\[3\]"),
    (counts_images, 2): ((3, 3, 8, 8), r"x.shape\[0\] == 2"),
    (counts_images, 1): ((2, 3, 8, 8), r"x.shape\[0\] == 1"),
}


@pytest.mark.parametrize(("function", "examples"), ANOTHER_WAY, ids=lambda value: getattr(value, "__name__", value))
def test_a_size_that_leads_another_way_is_an_error_that_tells_the_condition(function, examples):
    shape, condition = ANOTHER_WAY[function, examples]
    model = Looking(function).eval()
    x, other = images(examples, 3, 8, 8), images(*shape)
    wrapped = calibrated(model, x, example_inputs=x)
    assert relative_error(assert_exact(wrapped, x), model(x)) < 0.02
    for network in (wrapped, wrapped.convert(), copy.deepcopy(wrapped)):
        with pytest.raises(TraceError, match=condition) as caught:
            network(other)
        assert str(shape) in str(caught.value)
        assert "example_inputs like them" in str(caught.value)


def test_a_batch_of_another_size_stays_possible_where_len_asks_for_it(tmp_path):
    model = Looking(lambda m, x: m.fc(m.conv(x).mean((2, 3)).reshape(len(x), -1))).eval()
    for examples in (1, 3):
        wrapped = calibrated(model, images(examples, 3, 8, 8), example_inputs=images(examples, 3, 8, 8))
        for count in (1, 2, 5):
            assert relative_error(assert_exact(wrapped, images(count, 3, 8, 8)), model(images(count, 3, 8, 8))) < 0.1
    result = wrapped.export(images(2, 3, 8, 8), tmp_path / "model.onnx", dynamic_batch=True)
    assert result.passed


def test_several_inputs_must_fit_together_as_they_did():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, *, others):
            y = self.conv(x)
            return y + self.conv(others["y"]) if len(x.shape) == 4 and x.shape[2] == others["y"].shape[3] else y

    inputs = {"x": images(2, 3, 8, 8), "others": {"y": images(2, 3, 8, 8, seed=1)}}
    wrapped = edgeq.PTCFxModule(Two().eval(), example_inputs=inputs).train()
    wrapped(**inputs)
    wrapped.eval()
    assert wrapped(images(5, 3, 8, 8), others={"y": images(5, 3, 8, 8)}).shape == (5, 4, 8, 8)
    with pytest.raises(TraceError, match=r"others\['y'\].shape\[\d\] == x.shape\[\d\].*\(2, 3, 8, 8\), \(2, 3, 8, 6\)"):
        wrapped(inputs["x"], others={"y": images(2, 3, 8, 6)})


def test_the_condition_names_the_line_that_asks():
    wrapped = calibrated(Looking(branches).eval(), images(), example_inputs=images())
    line = branches.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match=rf"\(in branches, .*test_sizes.py:{line}\)"):
        wrapped(images(2, 3, 4, 8))


def test_an_export_for_any_batch_is_refused_where_the_model_counts_images(tmp_path):
    wrapped = calibrated(Looking(counts_images).eval(), images(), example_inputs=images())
    assert wrapped.export(images(), tmp_path / "model.onnx").passed
    with pytest.raises(ExportError, match=r"cannot take a batch of another size.*x.shape\[0\] == 2"):
        wrapped.export(images(), tmp_path / "model.onnx", dynamic_batch=True)


def test_checks_are_no_tensors_and_compile():
    wrapped = calibrated(Looking(branches).eval(), images(), example_inputs=images())
    assert [str(quantizer.name) for quantizer in wrapped.module.quantizers()] == ["x", "conv"]
    assert "size" not in wrapped.convert().module.operations
    compiled = torch.compile(wrapped, backend="eager", dynamic=True)
    assert torch.equal(compiled(images(3, 3, 10, 8)), wrapped(images(3, 3, 10, 8)))
    with pytest.raises(TraceError, match=r"x.shape\[2\] > 6"):
        compiled(images(3, 3, 5, 8))


def pads_as_tensorflow_does(m, x):
    if x.shape[2] > 100:  # what symbolic tracing cannot follow
        return m.conv(x)
    total = max((math.ceil(x.shape[3] / 3) - 1) * 3 + 3 - x.shape[3], 0)
    return m.conv(nn.functional.pad(x, [total // 2, total - total // 2]))


def halves_and_more(m, x):
    if x.shape[2] > 100:
        return m.conv(x)
    return m.conv(x)[..., : math.floor(x.shape[3] / 2), : math.ceil(x.shape[2] * 0.7)]


@pytest.mark.parametrize("function", [pads_as_tensorflow_does, halves_and_more])
def test_rounded_quotients_of_sizes_are_followed(function, tmp_path):
    model, x = Looking(function).eval(), images(2, 3, 8, 8)
    wrapped = calibrated(model, x, example_inputs=x)
    for size in (8, 10, 7, 15):
        other = images(2, 3, size, size, seed=1)
        assert assert_exact(wrapped, other)[0].shape == model(other).shape
        assert relative_error(wrapped(other), model(other)) < 0.15
    assert wrapped.export(x, tmp_path / "model.onnx").passed
