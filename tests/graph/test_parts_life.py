"""The life of networks with parts: copies, checkpoints, averages, and what users put around a module."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import edgeq
from tests.graph.parted import Plain, calibrated, counted, data, detector, train, training
from tests.states import changed, snapshot

KINDS = {"submodules": {}, "standalone": {"kind": Plain, "standalone": ["head"]}}
kinds = pytest.mark.parametrize("kind", KINDS)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}
MOMENTS = ("wrapped", "in an epoch", "evaluated", "calibrated")


def at(moment, kind):
    if moment == "calibrated":
        return calibrated(**KINDS[kind])
    wrapped = training(**KINDS[kind])
    if moment != "wrapped":
        train(wrapped)
    return wrapped.eval() if moment == "evaluated" else wrapped


def continued(wrapped):
    """The state after more epochs and an evaluation, and what the network gives then."""
    if wrapped.is_qat:
        train(wrapped, 2)
    else:
        wrapped.calibrate(data(seed=7))
    wrapped.eval()
    return snapshot(wrapped), wrapped(data()[0]).detach()


@kinds
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_lives_its_own_life_and_the_same_one(kind, moment, copied):
    wrapped = at(moment, kind)
    before = snapshot(wrapped)
    twin = COPIES[copied](wrapped)
    assert twin.training == wrapped.training
    assert changed(before, twin) == []
    state, output = continued(twin)
    assert changed(before, wrapped) == []
    own_state, own_output = continued(wrapped)
    assert changed(own_state, state) == []
    assert torch.equal(own_output, output)
    assert counted(twin) == counted(wrapped)


@kinds
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_an_integer_network_gives_the_same(kind, copied):
    converted = calibrated(**KINDS[kind]).convert()
    twin = COPIES[copied](converted)
    assert changed(snapshot(converted), twin) == []
    assert torch.equal(twin(data()[0]), converted(data()[0]))


@kinds
def test_nothing_of_an_integer_network_is_the_prepared_ones(kind):
    wrapped = calibrated(**KINDS[kind])
    before, converted = snapshot(wrapped), wrapped.convert()
    own = {tensor.data_ptr() for tensor in wrapped.state_dict().values() if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in converted.state_dict().values() if tensor.numel()}
    with torch.no_grad():
        for tensor in converted.state_dict().values():
            tensor.zero_()
    assert changed(before, wrapped) == []


# ---- checkpoints


@kinds
@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 3}, {"bias_calibration_factor": 0.5}], ids=str)
def test_a_training_that_is_resumed_from_a_checkpoint_is_the_one_that_was_not_stopped(kind, options):
    def epoch(wrapped, optimizer, number):
        torch.manual_seed(number)
        wrapped.train()
        for batch in data():
            optimizer.zero_grad()
            output = wrapped(batch)
            (output["loss"] if isinstance(output, dict) else output.square().mean()).backward()
            optimizer.step()
        if "bias_calibration_factor" in options:
            wrapped.eval()  # its inputs are not saved

    def made():
        wrapped = training(**KINDS[kind], **options)
        return wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)

    whole, optimizer = made()
    for number in range(2):
        epoch(whole, optimizer, number)
    resumed, other = made()
    resumed.load_state_dict(snapshot(whole))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert counted(resumed) == counted(whole)
    for number in range(2, 5):
        for wrapped, own in ((whole, optimizer), (resumed, other)):
            epoch(wrapped, own, number)
        assert changed(snapshot(whole), resumed) == []
    assert torch.equal(whole.eval()(data()[0]), resumed.eval()(data()[0]))


@kinds
@pytest.mark.parametrize("steps", [None, 3])
def test_a_calibration_that_is_resumed_in_the_middle_is_the_one_that_was_not_stopped(kind, steps):
    def made():
        options = {"bias_calibration_factor": 0, "num_observer_update_epochs": 3, "steps_per_epoch": steps}
        base = {"submodules": ["backbone", "head"]} | {k: v for k, v in KINDS[kind].items() if k != "kind"}
        if kind == "standalone":
            base.pop("submodules")
        return edgeq.PTCFxModule(detector(KINDS[kind].get("kind", type(detector()))), **base, **options)

    whole = made().train()
    for batch in data(2):
        whole(batch)
    resumed = made().train()
    resumed.load_state_dict(snapshot(whole))
    for wrapped in (whole, resumed):
        for batch in data(2, seed=5):
            wrapped(batch)
        wrapped.eval()
    assert changed(snapshot(whole), resumed) == []
    assert torch.equal(whole(data()[0]), resumed(data()[0]))


@kinds
def test_the_rest_follows_the_epoch_that_a_checkpoint_is_in(kind):
    trained = training(**KINDS[kind], num_batch_norm_update_epochs=1)
    train(trained, 2)
    fresh = training(**KINDS[kind], num_batch_norm_update_epochs=1).train()
    fresh.load_state_dict(snapshot(trained))
    before = snapshot(fresh)
    with torch.no_grad():
        fresh(5 * data()[0])
    assert [key for key in changed(before, fresh) if key.endswith("running_mean")] == []


@kinds
def test_a_checkpoint_of_a_calibrated_network_is_one(kind):
    wrapped = calibrated(**KINDS[kind])
    options = {key: value for key, value in KINDS[kind].items() if key != "kind"} or {
        "submodules": ["backbone", "head"]
    }
    fresh = edgeq.PTCFxModule(detector(KINDS[kind].get("kind", type(detector())), seed=3), **options).eval()
    report = fresh.load_weights(wrapped.module.state_dict(), strict=True)
    assert report.complete
    assert torch.equal(fresh(data()[0]), wrapped(data()[0]))
    assert torch.equal(fresh.convert()(data()[0]), wrapped.convert()(data()[0]))


# ---- what users put around a module


@kinds
def test_a_moving_average_of_buffers_too_converts_to_what_it_evaluates_to(kind):
    wrapped = training(**KINDS[kind])
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(2):
        train(wrapped)
        average.update_parameters(wrapped)
    average.eval()
    x = data()[0]
    assert torch.equal(average(x), average.module.convert()(x))
    assert not torch.equal(average(x), wrapped.eval()(x))
    last = average(x)
    assert torch.equal(average(x), last)


@kinds
def test_one_process_of_ddp_trains_as_without_it(kind, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        alone, wrapped = training(**KINDS[kind]), training(**KINDS[kind])
        train(alone, 2)
        model = DistributedDataParallel(wrapped)
        train(model, 2)
        alone.eval(), model.eval()
        assert changed(snapshot(alone), wrapped) == []
        assert torch.equal(alone(data()[0]), model(data()[0]))
    finally:
        dist.destroy_process_group()


@kinds
def test_training_under_autocast_keeps_state_and_gradients_in_float32(kind):
    rough, exact = training(**KINDS[kind]), training(**KINDS[kind])
    types = {key: value.dtype for key, value in rough.state_dict().items()}
    for wrapped, enabled in ((rough, True), (exact, False)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = wrapped.train()(data()[0])
        (output["loss"] if isinstance(output, dict) else output.float().square().mean()).backward()
    assert {key: value.dtype for key, value in rough.state_dict().items()} == types
    grads = [torch.cat([p.grad.flatten() for p in wrapped.parameters()]) for wrapped in (rough, exact)]
    assert grads[0].dtype is torch.float32
    assert float(torch.cosine_similarity(*grads, dim=0)) > 0.95


@kinds
def test_a_compiled_evaluation_is_one_graph_and_gives_the_eager_numbers(kind):
    torch._dynamo.reset()
    wrapped = calibrated(**(KINDS[kind] | {"kind": Plain}))
    with torch.no_grad():
        output = torch.compile(wrapped, backend="eager", fullgraph=True)(data()[0])
        assert torch.equal(output, wrapped(data()[0]))


def test_a_compiled_step_counts_and_gives_the_eager_gradients():
    torch._dynamo.reset()
    eager = training(Plain).train()
    compiled = copy.deepcopy(eager)
    step = torch.compile(compiled, backend="eager", fullgraph=True)
    for batch in data():
        for model in (eager, step):
            torch.manual_seed(0)
            model(batch).square().mean().backward()
    for mine, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert counted(eager) == counted(compiled)
    assert {step for _, step in counted(eager)} == {2}


def test_a_network_in_double_converts_to_float32_around_its_parts_too():
    wrapped = edgeq.PTCFxModule(detector(Plain).double(), submodules=["backbone", "head"])
    wrapped.calibrate([batch.double() for batch in data()])
    converted = wrapped.convert()
    assert {tensor.dtype for tensor in converted.state_dict().values()} & {torch.float64, torch.float16} == set()
    assert next(wrapped.parameters()).dtype is torch.float64
    found, expected = converted(data()[0]), wrapped(data()[0].double())
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()
