"""What every registered observer promises, and that one from outside is used like those of the house."""

import copy

import pytest
import torch

import edgeq
from edgeq.errors import SpecError
from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS
from edgeq.phase import Phase
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import Method, TensorSpec
from tests.networks import batches, network
from tests.observers.data import spec_for

NAMES = list(OBSERVERS)
every = pytest.mark.parametrize("name", NAMES)
SPECS = [TensorSpec(), TensorSpec(symmetric=True), TensorSpec(bits=4, scale="power_of_two")]
ONE_HISTOGRAM = ("moving_squared_error", "power_of_two_search")  # a batch: channels are for `measure` alone


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shown(name, *data, spec=None):
    observer = OBSERVERS[name](spec_for(name, spec or TensorSpec()))
    for x in data:
        observer.observe(x)
    return observer


def same(one, other):
    state = other.state_dict()
    return list(one.state_dict()) == list(state) and all(torch.equal(v, state[k]) for k, v in one.state_dict().items())


def test_the_observers_are_these():
    searches = {"entropy", "moving_squared_error", "power_of_two_search", "squared_error"}
    assert set(NAMES) == searches | {"deviations", "mean_magnitude", "minmax", "moving_average", "percentile"}


@every
def test_state_is_finite_buffers_of_fixed_shape_and_type(name):
    observer = OBSERVERS[name](spec_for(name))
    assert not list(observer.parameters())
    layout = {key: (value.shape, value.dtype) for key, value in observer.state_dict().items()}
    assert {"batches", "low", "high"} <= set(layout)
    for size in (1, 7, 1000, 200_000):
        assert all(bool(torch.isfinite(value).all()) for value in observer.state_dict().values())
        observer.observe(normal(size) * size)
        assert {key: (value.shape, value.dtype) for key, value in observer.state_dict().items()} == layout
    assert observer.batches == 4


@every
def test_casting_leaves_the_state_in_float32_and_half_precision_data_is_taken(name):
    observer = shown(name, normal(500)).to(torch.bfloat16)
    assert {v.dtype for v in observer.buffers()} <= {torch.float32, torch.int32, torch.int64}
    x = normal(500, seed=1).to(torch.bfloat16)
    observer.observe(x)
    assert same(observer, shown(name, normal(500), x.float()))


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@every
def test_torchs_default_type_changes_nothing(name):
    x = torch.linspace(-1.0, 3.0, 101)
    observer = shown(name, x, 2 * x)
    assert {v.dtype for v in observer.buffers()} <= {torch.float32, torch.int32, torch.int64}
    torch.set_default_dtype(torch.float32)
    assert same(observer, shown(name, x, 2 * x))


@every
def test_a_copy_and_a_restored_state_go_on_alike(name):
    observer = shown(name, normal(500), 3 * normal(500, seed=1))
    restored = OBSERVERS[name](spec_for(name))
    restored.load_state_dict(observer.state_dict())
    copied = copy.deepcopy(observer)
    before = copy.deepcopy(observer)
    for other in (restored, copied):
        other.observe(5 * normal(500, seed=2))
    assert same(restored, copied)
    assert torch.equal(torch.stack(restored.range()), torch.stack(copied.range()))
    assert same(observer, before)
    assert not same(observer, copied)


@every
def test_an_empty_batch_does_not_count(name):
    assert same(shown(name, torch.zeros(0, 3, 4)), OBSERVERS[name](spec_for(name)))
    x = normal(100)
    assert same(shown(name, x, torch.zeros(0), x), shown(name, x, x))


@every
def test_nothing_seen_is_a_range_of_zeros(name):
    assert torch.stack(OBSERVERS[name](spec_for(name)).range()).tolist() == [0.0, 0.0]


@every
def test_the_same_data_gives_the_same_state_and_no_random_number_is_drawn(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = normal(100_000)
    assert same(shown(name, x), shown(name, x.clone()))
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_no_gradient_is_recorded(name):
    x = normal(100).requires_grad_()
    assert not any(value.requires_grad for value in shown(name, x).buffers())


@pytest.mark.parametrize("spec", SPECS, ids=["affine", "symmetric", "power of two"])
@every
def test_the_range_lies_within_the_extremes_and_scales_with_the_data(name, spec):
    x = normal(4000)
    low, high = shown(name, x, spec=spec).range()
    assert x.min() <= low < 0 < high <= x.max()
    wide = shown(name, 8 * x, spec=spec).range()
    assert torch.equal(torch.stack(wide), 8 * torch.stack([low, high]))


@pytest.mark.parametrize("bounds", [(0.0, None), (0.0, 1.0), (-0.5, 0.5), (None, 1.0)])
@every
def test_bounds_of_an_activation_do_what_clamping_first_does(name, bounds):
    observer = OBSERVERS[name](spec_for(name))
    for seed in range(3):
        observer.observe(normal(1000, seed=seed), *bounds)
    assert same(observer, shown(name, *(normal(1000, seed=seed).clamp(*bounds) for seed in range(3))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every
def test_a_value_that_is_not_finite_stays_visible(name, bad):
    observer = shown(name, torch.tensor([bad, 1.0]), normal(10), normal(10))
    assert not bool(torch.isfinite(torch.stack([observer.low, observer.high])).all())


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
@pytest.mark.parametrize("shape", [(9,), (1,), ()])
@every
def test_a_constant_tensor_has_a_range_that_holds_it(name, shape, value):
    """Law 8."""
    x = torch.full(shape, value)
    low, high = shown(name, x, x).range()
    assert bool(torch.isfinite(torch.stack([low, high])).all())
    assert low.clamp(max=0) <= x.min()
    assert x.max() <= high.clamp(min=0)


@pytest.mark.parametrize("size", [2.0**-149, 1e-38, 1e-20, 1e20, 3e38])
@every
def test_tiny_and_huge_values_have_a_finite_range(name, size):
    x = normal(1000).clamp(-1, 1) * size
    low, high = shown(name, x).range()
    assert x.min() <= low <= 0 <= high <= x.max()


@pytest.mark.parametrize("phase", [Phase.FLOAT, Phase.QUANTIZE])
@every
def test_in_evaluation_nothing_changes(name, phase):
    quantizer = TensorQuantizer("x", spec_for(name), Method(name))
    quantizer.phase = Phase.OBSERVE
    quantizer(normal(100))
    quantizer.finish()
    before, quantizer.phase = copy.deepcopy(quantizer), phase
    quantizer(100 * normal(100))
    assert same(quantizer, before)


@pytest.mark.parametrize("name", [name for name in NAMES if OBSERVERS[name].for_weights])
def test_a_weight_is_measured_one_channel_at_a_time_whatever_was_seen_before(name):
    weight = normal(3, 4, 50) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    spec = spec_for(name, TensorSpec(sign="signed", symmetric=True, bits=4))
    observer = OBSERVERS[name](spec, 3, 0)
    for _ in range(2):
        low, high = observer.measure(weight)
        for channel in range(3):
            alone = OBSERVERS[name](spec).measure(weight[channel])
            assert torch.stack([low[channel], high[channel]]).tolist() == pytest.approx(torch.stack(alone).tolist())
        if name not in ONE_HISTOGRAM:
            observer.observe(100 * weight)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("percentile", "percentile", -0.1),
        ("percentile", "percentile", 50),
        ("moving_average", "percentile", 60.0),
        ("moving_average", "momentum", 1.5),
        ("squared_error", "candidates", 1),
        ("squared_error", "power", 0.9),
        ("moving_squared_error", "power", 7.0),
        ("moving_squared_error", "momentum", 1.5),
        ("entropy", "candidates", 300),
    ],
)
def test_an_option_out_of_its_bounds_is_refused(name, option, value):
    with pytest.raises(SpecError, match=rf"observer\.{option} must lie in .*, got {value}"):
        TensorSpec(observer=Method(name, ((option, value),)))


@pytest.fixture
def half_range():
    @OBSERVERS.register("half_range")
    class HalfRangeObserver(Observer):
        """Some share of the extremes."""

        def __init__(self, spec, channels=None, axis=None, *, share=0.5):
            super().__init__(spec, channels, axis)
            self.share = share

        def range(self):
            return self.low * self.share, self.high * self.share

    yield HalfRangeObserver
    del OBSERVERS._entries["half_range"]


def test_an_observer_from_outside_is_named_in_a_preset_like_any_other(half_range):
    observer = {"name": "half_range", "share": 0.25}
    preset = {"inherits": "WC8_AT8", "activation": {"observer": observer}}
    wrapped = edgeq.PTCFxModule(network("residual"), preset).calibrate(batches())
    exact = edgeq.PTCFxModule(network("residual"), "MSA_WC8_AT8").calibrate(batches())
    free = [(mine, its) for mine, its in zip(wrapped.module.quantizers(), exact.module.quantizers(), strict=True)]
    assert len(free) >= 5
    for mine, its in free:
        assert isinstance(mine.observer, half_range)
        assert torch.equal(torch.stack(mine.observer.range()), 0.25 * torch.stack(its.observer.range()))
    with pytest.raises(SpecError, match="Unknown key 'shares'"):
        edgeq.PTCFxModule(network("residual"), preset | {"activation": {"observer": observer | {"shares": 1.0}}})


@pytest.mark.usefixtures("half_range")
def test_no_name_is_registered_twice():
    with pytest.raises(SpecError, match="'half_range' is already registered"):
        OBSERVERS.register("half_range")(Observer)


@every
def test_a_pass_reads_no_value(name):
    """A tensor on the meta device has none to read."""
    observer = OBSERVERS[name](spec_for(name)).to("meta")
    for _ in range(2):
        observer.observe(torch.empty(8, 3, 16, 16, device="meta"), 0.0, 6.0)
    assert {buffer.device.type for buffer in observer.buffers()} == {"meta"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("moving", "power", "mean", "dev", "min"))])
def test_observers_for_training_find_their_range_without_reading_a_value_either(name):
    observer = OBSERVERS[name](spec_for(name)).to("meta")
    observer.observe(torch.empty(8, 3, 16, 16, device="meta"))
    assert [end.shape for end in observer.range()] == [(), ()]


@every
def test_a_reset_observer_is_as_good_as_new(name):
    used, new = (OBSERVERS[name](spec_for(name)) for _ in range(2))
    buffers = dict(used.named_buffers())
    used.observe(normal(64, seed=1) * 1e4)
    used.reset()
    assert all(value is buffers[key] for key, value in used.named_buffers())
    for observer in (used, new):
        observer.observe(normal(64, seed=2))
    assert same(used, new)
    assert all(torch.equal(*pair) for pair in zip(used.range(), new.range(), strict=True))
