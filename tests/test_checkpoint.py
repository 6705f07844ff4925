"""Loading weights: from a path or a dict, whatever wrapper put its prefix on, with a report of every key."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from tests.networks import batches, network
from tests.states import changed, snapshot


def wrapped(seed=0):
    return edgeq.PTCFxModule(network("residual", seed))


FLOAT = network("residual", 5).state_dict()


def assert_float_weights_loaded(model, report):
    assert report.loaded == list(FLOAT)
    assert (report.unexpected, report.mismatched) == ([], [])
    assert all(key.split(".")[-1] not in ("weight", "bias") for key in report.missing)
    assert set(report.missing) == set(model.module.state_dict()) - set(FLOAT)
    state = model.module.state_dict()
    assert changed(FLOAT, {key: state[key] for key in FLOAT}) == []


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "_orig_mod.module.module."])
def test_a_float_state_dict_loads_under_any_wrappers_prefix(prefix):
    model = wrapped()
    assert_float_weights_loaded(model, model.load_weights({prefix + key: value for key, value in FLOAT.items()}))


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model", "module"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_float_checkpoint_loads_from_a_path(tmp_path, container, kind):
    path = tmp_path / "model.pth"
    torch.save(FLOAT if container is None else {"epoch": 7, container: FLOAT}, path)
    model = wrapped()
    assert_float_weights_loaded(model, model.load_weights(kind(path)))


def test_an_ordered_dict_of_parameters_loads_too():
    model = wrapped()
    parameters = OrderedDict(network("residual", 5).named_parameters())
    assert model.load_weights(parameters).loaded == list(parameters)
    assert torch.equal(model.module.fc.weight, FLOAT["fc.weight"])


@pytest.mark.parametrize("of_wrapper", [True, False])
def test_a_quantized_checkpoint_loads_whole_and_needs_no_calibration(of_wrapper):
    source, target = wrapped(5).calibrate(batches()), wrapped()
    report = target.load_weights((source if of_wrapper else source.module).state_dict(), strict=True)
    assert report.complete
    assert report.loaded == list(source.module.state_dict())
    assert changed(snapshot(source), target) == []
    target.eval()
    assert torch.equal(target(batches()[0]), source(batches()[0]))
    assert torch.equal(target.convert()(batches()[0]), source.convert()(batches()[0]))


def test_a_model_with_a_submodule_called_module_keeps_its_own_keys():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 4)

        def forward(self, x):
            return self.module(x)

    source, target = Parallel(), edgeq.PTCFxModule(Parallel())
    for state in (source.state_dict(), {f"module.{key}": value for key, value in source.state_dict().items()}):
        with torch.no_grad():
            target.module.module.weight.zero_()
        assert target.load_weights(state).loaded == ["module.weight", "module.bias"]
        assert torch.equal(target.module.module.weight, source.module.weight)


def test_the_report_says_what_became_of_each_key():
    state = dict(FLOAT)
    del state["conv1.weight"]
    state["head.weight"] = torch.zeros(2)
    state["fc.weight"] = torch.zeros(7, 8)
    model = wrapped()
    before = snapshot(model.module)
    report = model.load_weights(state)
    assert "conv1.weight" in report.missing
    assert report.unexpected == ["head.weight"]
    assert report.mismatched == [("fc.weight", (7, 8), (5, 8))]
    assert len(report.loaded) == len(FLOAT) - 2
    assert not report.complete
    kept = changed(before, model.module)
    assert "fc.weight" not in kept
    assert "conv1.weight" not in kept
    assert "conv2.weight" in kept
    lines = str(report).splitlines()
    assert lines[0] == f"{len(FLOAT) - 2} keys loaded"
    assert "1 unexpected: head.weight" in lines
    assert "fc.weight has shape (7, 8), the model (5, 8)" in lines


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_strict_loads_all_or_nothing(change):
    state = dict(wrapped(5).module.state_dict())
    if change == "missing":
        del state["fc.weight"]
    elif change == "unexpected":
        state["head.weight"] = torch.zeros(2)
    else:
        state["fc.weight"] = torch.zeros(7, 8)
    model = wrapped()
    before = snapshot(model)
    with pytest.raises(SpecError, match=r"does not fit, nothing was loaded:\n.*(fc|head)\.weight"):
        model.load_weights(state, strict=True)
    assert changed(before, model) == []


def test_a_checkpoint_of_another_architecture_loads_nothing_and_says_so():
    model = wrapped()
    before = snapshot(model)
    other = network("separable").state_dict()
    report = model.load_weights(other)
    assert (report.loaded, report.unexpected) == ([], list(other))
    assert report.missing == list(model.module.state_dict())
    assert changed(before, model) == []
    with pytest.raises(SpecError, match="nothing was loaded"):
        model.load_weights(other, strict=True)


def test_a_parameter_stays_the_users_object():
    model = network("residual")
    own = dict(model.named_parameters())
    edgeq.PTCFxModule(model).load_weights(FLOAT)
    assert all(value is own[key] for key, value in model.named_parameters())
    assert torch.equal(own["fc.weight"], FLOAT["fc.weight"])


def test_the_free_function_loads_into_any_module():
    model = network("residual")
    assert edgeq.load_weights(model, FLOAT, strict=True).complete
    assert changed(FLOAT, model) == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.pth'? is no file of tensors|no state dict"):
        wrapped().load_weights(path, strict=True)


def test_a_file_with_a_whole_model_is_refused_with_the_way_out(tmp_path):
    torch.save(network("residual"), tmp_path / "model.pth")
    with pytest.raises(SpecError, match=r"model\.pth.*save model\.state_dict\(\) instead"):
        wrapped().load_weights(tmp_path / "model.pth")


@pytest.mark.parametrize(("name", "reason"), [("missing.pth", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, name, reason):
    with pytest.raises(SpecError, match=f"cannot be read: {reason}"):
        wrapped().load_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([1], "a path or a dict, got list"),
        (None, "a path or a dict, got NoneType"),
        ({"epoch": 3, "lr": 0.1}, "no state dict of names and tensors: see 'epoch', 'lr'"),
        ({1: torch.zeros(2)}, "no state dict of names and tensors: see 1"),
    ],
)
def test_what_is_no_state_dict_is_refused(source, message):
    model = wrapped()
    before = snapshot(model)
    with pytest.raises(SpecError, match=message):
        model.load_weights(source)
    assert changed(before, model) == []
