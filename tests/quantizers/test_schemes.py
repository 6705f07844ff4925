"""What all quantizers that presets name promise: numbers of the definition, a start in place, errors that help."""

import copy

import pytest
import torch

import edgeq
from edgeq.arithmetic import along, fake_quantize
from edgeq.errors import SpecError
from edgeq.phase import Phase
from edgeq.qparams import qparams_of_range
from edgeq.quantizers import QUANTIZERS
from edgeq.quantizers.scheme import set_learning
from edgeq.spec import Method, TensorSpec
from tests.networks import network
from tests.quantizers.layouts import normal
from tests.quantizers.schemes import activation, weight

TWO = {"scale": "power_of_two"}
ACTIVATIONS = {  # name and what of the spec is not plain
    "lsq": ("lsq", {}),
    "lsq affine": ("lsq", {"symmetric": False}),
    "lsq power of two": ("lsq", TWO),
    "lsqplus": ("lsqplus", {"symmetric": False}),
    "lsqplus symmetric": ("lsqplus", {}),
    "tqt": ("tqt", TWO),
    "tqt nearest": ("tqt", {**TWO, "power_of_two_rule": "nearest"}),
    "pact": ("pact", {}),
    "pact affine": ("pact", {"symmetric": False}),
    "pact power of two": ("pact", TWO),
    "dsq": ("dsq", {}),
    "dsq affine": ("dsq", {"symmetric": False}),
}
every = pytest.mark.parametrize("case", ACTIVATIONS)
BOUNDS = [(None, None), (0.0, None), (0.0, 6.0)]


def test_the_quantizers_are_these():
    names = ["apot", "dorefa", "dsq", "fixed", "lsq", "lsqplus", "nnie", "pact", "qil", "tqt"]
    assert list(QUANTIZERS) == names
    assert [name for name in names if not QUANTIZERS[name].for_weights] == ["pact"]
    assert [name for name in names if not QUANTIZERS[name].for_activations] == ["dorefa", "qil"]
    assert [name for name in names if not QUANTIZERS[name].is_uniform] == ["apot", "nnie"]


@pytest.mark.parametrize("bounds", BOUNDS)
@every
def test_a_training_pass_gives_the_numbers_of_the_definition(case, bounds):
    """Law 1, and the buffers are what is in force."""
    name, changes = ACTIVATIONS[case]
    made = activation(name, **changes)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    for seed in range(4):
        x = normal(3, 500, seed=seed).requires_grad_()
        y = made(x, *bounds)
        held = x if bounds == (None, None) else x.clamp(*bounds)
        assert torch.equal(y, fake_quantize(held, *made.qparams, None, made.spec.rounding))
        assert bool(torch.frexp(made.scale).mantissa == 0.5) or changes.get("scale") is None
        optimizer.zero_grad()
        (y - 0.5 * x.detach()).square().sum().backward()
        assert bool(torch.isfinite(x.grad).all())
        optimizer.step()
    set_learning(made, False)
    made.phase = Phase.QUANTIZE
    held = x if bounds == (None, None) else x.clamp(*bounds)
    assert torch.equal(made(x.detach(), *bounds), fake_quantize(held, *made.qparams, None, made.spec.rounding))


@pytest.mark.parametrize("data", ["negative", "a constant", "a negative constant", "zeros", "one value"])
@every
def test_a_start_from_what_lies_on_one_side_of_zero_reaches_it_and_learns(case, data):
    name, changes = ACTIVATIONS[case]
    made = activation(name, **changes)
    x = {
        "negative": -normal(500).abs() - 0.1,
        "a constant": torch.full((50,), 3.0),
        "a negative constant": torch.full((50,), -3.0),
        "zeros": torch.zeros(50),
        "one value": torch.tensor([1.5]),
    }[data].requires_grad_()
    y = made(x)
    y.square().sum().backward()
    assert bool(torch.isfinite(y).all() and torch.isfinite(x.grad).all())
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in made.parameters())
    low, high = ((code - made.zero_point) * made.scale for code in (made.quant_min, made.quant_max))
    assert low <= 0.7 * x.min().clamp(max=0.0)  # powers of two may clip a little
    assert high >= 0.7 * x.max().clamp(min=0.0)


@every
def test_it_starts_in_place_from_the_observed_range_and_then_observes_no_more(case):
    name, changes = ACTIVATIONS[case]
    made = activation(name, **changes)
    parameters = list(made.parameters())
    x = normal(1000)
    made(x)
    expected = qparams_of_range(made.spec, x.amin(), x.amax())
    for mine, its in zip(made.qparams, expected, strict=True):
        assert torch.allclose(mine.float(), its.float(), rtol=1e-6)
    assert [id(p) for p in made.parameters()] == [id(p) for p in parameters]
    before = copy.deepcopy(made)
    made(100 * x)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), before.parameters(), strict=True))
    assert torch.equal(torch.stack(made.observer.range()), torch.stack(before.observer.range()))
    made.refresh()
    assert all(torch.equal(a, b) for a, b in zip(made.qparams, before.qparams, strict=True))


@pytest.mark.parametrize("case", ["lsq", "tqt", "pact", "dsq"])
def test_the_sign_is_decided_by_what_it_starts_from(case):
    name, changes = ACTIVATIONS[case]
    made = activation(name, **changes)
    made(normal(100).abs())
    assert (int(made.quant_min), int(made.quant_max)) == (0, 15)
    assert made(normal(100)).min() == 0
    made.refresh()
    assert (int(made.quant_min), int(made.quant_max)) == (0, 15)
    other = activation(name, **changes)
    other(normal(100))
    assert (int(other.quant_min), int(other.quant_max)) == (-8, 7)


def test_it_may_start_from_several_batches_which_are_counted():
    made = activation("lsq", options={"batches": 3})
    data = [normal(50, seed=seed) * (seed + 1) for seed in range(5)]
    for x in data[:3]:
        made(x)
        with torch.no_grad():
            made.scheme.step.mul_(7)
    resumed = activation("lsq", options={"batches": 3})
    resumed.load_state_dict(made.state_dict())
    for one in (made, resumed):
        one(data[3])
        assert int(one.scheme.started) == 3
    assert torch.equal(made.scale, resumed.scale)
    assert float(made.observer.high) == float(torch.cat(data[:3]).max())
    fresh = activation("lsq", options={"batches": 3})
    for x in data[:2]:
        fresh(x)
    assert float(fresh.scale) == float(qparams_of_range(fresh.spec, *fresh.observer.range()).scale)


def test_nothing_is_started_by_an_empty_batch_and_evaluation():
    made = activation("lsq")
    assert made(torch.zeros(0, 3)).shape == (0, 3)
    set_learning(made, False)
    made.phase = Phase.QUANTIZE
    made(normal(10))
    assert int(made.scheme.started) == 0


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", ["lsq", "lsqplus", "tqt", "dsq", "dorefa", "qil"])
def test_a_weight_has_the_numbers_of_its_codes(name, granularity):
    x = normal(6, 4, 3, 3) / 10
    made = weight(name, x, granularity=granularity, **(TWO if name == "tqt" else {}))
    assert made.scale.shape == ((6,) if granularity == "channel" else ())
    ready = made.transform(x).detach()
    trained = made(made.transform(x.requires_grad_()))
    assert torch.equal(trained, made.codes(ready) * along(made.scale, 0, 4))
    trained.square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert float((trained.detach() - ready).abs().max()) <= float(made.scale.max()) * 1.01
    set_learning(made, False)
    assert torch.equal(made(made.transform(x.detach())), trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "lsqq"}, "quantizer: Unknown quantizer 'lsqq'.*lsq"),
        ({"quantizer": {"name": "lsq", "batchs": 2}}, "Unknown key 'batchs' in quantizer .lsq.*batches"),
        ({"quantizer": {"name": "lsq", "batches": 0}}, "quantizer.batches must lie in 1"),
        ({"quantizer": {"name": "dsq", "alpha": 0.7}}, "quantizer.alpha must lie in"),
        ({"quantizer": "tqt"}, "'tqt' learns symmetric power-of-two scales: set symmetric = true"),
        ({"quantizer": "nnie", "bits": 4}, "'nnie' is one of 8 bits"),
        ({"quantizer": "apot", "symmetric": False}, "set symmetric = true"),
        ({"quantizer": "lsq", "fixed_range": 4.0}, "'lsq' finds the range itself: leave out fixed_range"),
    ],
)
def test_a_spec_that_a_quantizer_cannot_follow_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        edgeq.load_preset({"activation": {"symmetric": True} | changes})


def test_a_quantizer_for_the_other_kind_of_tensor_is_refused():
    with pytest.raises(
        SpecError, match=r"weight\.quantizer is 'pact', which is for activations; for weights: apot, do"
    ):
        edgeq.load_preset({"weight": {"quantizer": "pact"}})
    with pytest.raises(SpecError, match=r"activation\.quantizer is 'qil', which is for weights"):
        edgeq.load_preset({"activation": {"quantizer": "qil"}})


@pytest.mark.parametrize("name", ["dorefa", "qil", "apot"])
def test_what_makes_other_weights_is_not_for_calibration(name):
    with pytest.raises(SpecError, match=f"The quantizer '{name}' makes other weights .* use QATFxModule"):
        edgeq.PTCFxModule(network("residual"), {"weight": {"quantizer": name}})


def test_a_known_range_and_the_plain_quantizer_have_no_scheme():
    assert activation("fixed").scheme is None
    made = activation("lsq")
    fixed = type(made)("softmax", TensorSpec(quantizer=Method("lsq")), Method("minmax"), (0.0, 1.0), trains=True)
    assert (fixed.scheme, float(fixed.scale)) == (None, 2**-8)
