"""What does nothing is taken out; what acts in training stays there."""

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images
from tests.graph.passes.networks import changes, kinds, only

NAME = "identity_removal"


def network(between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), between, nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.0), nn.Conv2d(6, 4, 1))


def test_an_identity_no_longer_stands_between_a_layer_and_its_norm():
    wrapped = calibrated(network(nn.Identity()).eval(), images(), rewrites=only(NAME))
    assert kinds(wrapped) == ["QuantizedConv2d", "QuantizedConv2d"]
    assert wrapped.module.quantized_layers()[0].site.norm is wrapped.module.get_submodule("2")
    assert type(wrapped.module.get_submodule("1")) is nn.Identity
    assert [change.what for change in wrapped.module.changes.each] == ["Identity -> nothing", "Dropout -> nothing"]
    assert {change.difference for change in wrapped.module.changes.each} == {0.0}
    assert_exact(wrapped, images())


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_calibration_never_drops_and_needs_no_dropout(kind):
    model = network(kind(0.5)).eval()
    wrapped = calibrated(model, images(), rewrites=only(NAME))
    assert kinds(wrapped) == ["QuantizedConv2d", "QuantizedConv2d"]
    kept = edgeq.PTCFxModule(model, rewrites=only(NAME, False))
    assert kind.__name__ in kinds(kept)
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(images()), kept.module.run_float(images()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout3d])
def test_dropouts_of_other_maps_are_none_either(kind):
    conv = nn.Conv1d if kind is nn.Dropout1d else nn.Conv3d
    model = nn.Sequential(conv(3, 4, 1), kind(), conv(4, 4, 1)).eval()
    (change,) = changes(model, NAME)
    assert (change.place, change.difference) == ("1", 0.0)


def test_a_dropout_that_drops_acts_in_training_as_without_the_rewrite():
    outputs = []
    for wanted in (True, False):
        wrapped = edgeq.QATFxModule(network(nn.Dropout(0.5)).train(), total_epochs=2, rewrites=only(NAME, wanted))
        wrapped.train()
        assert ("Dropout" in kinds(wrapped)) is True
        torch.manual_seed(1)
        outputs.append(wrapped(images()))
    assert torch.equal(*outputs)
    (change,) = changes_in_training(network(nn.Dropout(0.5)))
    assert change.place == "4"  # the one with p = 0


def changes_in_training(model):
    return edgeq.QATFxModule(model, total_epochs=2, rewrites=only(NAME)).module.changes.each


def test_functional_dropout_follows_the_same_rules():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = nn.functional.dropout(self.conv(x), 0.5, self.training)
            return nn.functional.dropout(x, 0.25, True)

    assert [change.place for change in changes(Functional(), NAME)] == ["quantization.dropouts.dropout"]
    assert changes_in_training(Functional()) == ()
    wrapped = edgeq.PTCFxModule(Functional(), rewrites=only(NAME))
    assert kinds(wrapped)[-1] == "dropout"  # this one always drops
    with torch.no_grad():
        assert (wrapped.module.run_float(images()) == 0).float().mean() > 0.1


def test_a_module_with_hooks_or_a_rule_of_its_own_stays():
    model = network(nn.Identity()).eval()
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    wrapped = edgeq.PTCFxModule(model, rewrites=only(NAME))
    assert [change.place for change in wrapped.module.changes.each] == ["4"]
    wrapped(images())
    assert seen == [(2, 6, 6, 6)]
    rules = {"inherits": "DEFAULT", "rules": [{"name": "1", "quantize": False}]}
    kept = edgeq.PTCFxModule(network(nn.Identity()).eval(), rules, rewrites=only(NAME))
    assert [change.place for change in kept.module.changes.each] == ["4"]


def test_what_eval_never_needs_is_not_in_the_converted_network_either():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.same = nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Identity()

        def forward(self, x):
            return self.same(self.drop(torch.log_softmax(self.conv(x), 1))) * 2

    wrapped = edgeq.QATFxModule(Late(), total_epochs=2, rewrites=AS_WRITTEN).train()
    wrapped(images())
    assert {"Dropout", "Identity"} <= set(kinds(wrapped))
    converted = wrapped.eval().convert()
    assert not [module for module in converted.modules() if isinstance(module, nn.Dropout | nn.Identity)]
    assert_exact(wrapped, images())


def test_an_identity_that_is_all_there_is_between_input_and_output_is_no_trouble():
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.conv = nn.Identity(), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.same(x), self.conv(self.same(x))

    wrapped = calibrated(Through().eval(), images(), rewrites=only(NAME))
    assert len(wrapped.module.changes.each) == 2
    first, _ = assert_exact(wrapped, images())
    assert (first - images()).abs().max() < 0.02
