"""Which rewrites there are, which run, and what is said to names and options that are unknown."""

import pytest
from torch import nn

import edgeq
from edgeq.graph.passes.registry import REWRITES, Stage, rewrite, wanted_rewrites
from tests.graph.parity import AS_WRITTEN, images
from tests.graph.passes.networks import only

BY_DEFAULT = {
    *("identity_removal", "scalar_merging", "slice_merging", "slices_to_split", "mean_to_pool", "norm_after_concat"),
    *("norm_before_layer", "scalar_folding", "lone_norm_to_conv"),
}
ON_REQUEST = {
    *("hard_activation_to_relu", "silu_to_hardswish", "sigmoid_to_hardsigmoid", "layer_norm_decomposed"),
    "large_pool_split",
}


def names(wanted):
    return [entry.name for entry, _ in wanted_rewrites(wanted)]


def test_what_changes_the_function_or_is_for_some_device_runs_on_request_only():
    assert set(names(None)) == BY_DEFAULT
    assert set(edgeq.rewrite_names()) == BY_DEFAULT | ON_REQUEST
    assert all(REWRITES[name].changes for name in REWRITES)
    assert {name for name in REWRITES if not REWRITES[name].keeps} == {
        *("hard_activation_to_relu", "silu_to_hardswish", "sigmoid_to_hardsigmoid"),
    }


def test_each_can_be_switched_off_and_on_by_itself():
    assert names(AS_WRITTEN) == []
    for name in edgeq.rewrite_names():
        assert names({**AS_WRITTEN, name: True}) == [name]
        assert set(names({name: False})) == BY_DEFAULT - {name}


def test_they_run_stage_by_stage():
    stages = [REWRITES[name].stage for name in edgeq.rewrite_names()]
    assert stages == sorted(stages)
    assert edgeq.rewrite_names().index("mean_to_pool") < edgeq.rewrite_names().index("large_pool_split")
    assert edgeq.rewrite_names()[-1] == "lone_norm_to_conv"


def test_options_reach_the_rewrite():
    ((entry, options),) = wanted_rewrites({**AS_WRITTEN, "large_pool_split": {"positions": 99}})
    assert (entry.name, options) == ("large_pool_split", {"positions": 99})
    assert entry.options == {"positions": 512}


@pytest.mark.parametrize(("wanted", "message"), [
    ({"mean_to_pol": False}, r"Unknown rewrite 'mean_to_pol'. Did you mean 'mean_to_pool'\?"),
    ({"large_pool_split": {"position": 9}}, r"'large_pool_split'\] has no option 'position'. Did you mean 'positions'"),
    ({"mean_to_pool": {"dims": 2}}, r"'mean_to_pool'\] has no option 'dims'"),
    ({"mean_to_pool": 1}, r"'mean_to_pool'\] must be True, False or a dict of its options, got 1"),
    (["mean_to_pool"], r"rewrites must be a dict of names to True, False or options, got \['mean_to_pool'\]"),
])  # fmt: skip
@pytest.mark.parametrize("wrap", [
    lambda model, wanted: edgeq.PTCFxModule(model, rewrites=wanted),
    lambda model, wanted: edgeq.QATFxModule(model, total_epochs=2, rewrites=wanted),
    lambda model, wanted: edgeq.prepare_fx(model, rewrites=wanted),
    lambda model, wanted: edgeq.prepare_qat_fx(model, rewrites=wanted),
], ids=["ptc", "qat", "prepare_fx", "prepare_qat_fx"])  # fmt: skip
def test_what_is_unknown_is_refused_with_a_suggestion(wrap, wanted, message):
    with pytest.raises(edgeq.SpecError, match=message):
        wrap(nn.Sequential(nn.Conv2d(3, 4, 1)), wanted)


def test_every_way_to_wrap_a_model_takes_them():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(self.conv(x).mean((2, 3)))

    def train(model, **options):
        return edgeq.QATFxModule(model, total_epochs=2, **options)

    wrappers = (edgeq.PTCFxModule, train, edgeq.prepare_fx, edgeq.prepare_qat_fx)
    for wrap in wrappers:
        for wanted in (True, False):
            wrapped = wrap(Head().eval(), rewrites={"mean_to_pool": wanted})
            assert len(wrapped.module.changes.each) == wanted


def test_parts_of_a_model_are_rewritten_too():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(4))

        def forward(self, x):
            return self.part(x)

    for wanted in (True, False):
        options = {"submodules": ["part"], "example_inputs": images(), "rewrites": only("identity_removal", wanted)}
        wrapped = edgeq.PTCFxModule(Outer().eval(), **options)
        assert len(wrapped.module.get_submodule("part").changes.each) == wanted


def test_a_rewrite_from_elsewhere_is_registered_by_decorator_and_may_not_change_the_function_silently():
    with pytest.raises(edgeq.SpecError, match="already registered"):
        rewrite("mean_to_pool", Stage.TIDY, "nothing")(lambda draft: None)
    with pytest.raises(edgeq.SpecError, match="cannot run by default"):
        rewrite("other", Stage.TIDY, "something", keeps=False)
    assert "other" not in REWRITES
