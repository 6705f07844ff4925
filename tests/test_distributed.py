"""Two processes with different data: DDP training and distributed calibration end with equal networks."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import edgeq
from tests.networks import batches, network
from tests.states import changed, snapshot, train_step

WORLD = 2
DATA = [[batch + rank for batch in batches(2, seed=rank)] for rank in range(WORLD)]


def training(rank):
    """Three epochs of DDP, the second of them followed by an evaluation."""
    torch.manual_seed(rank)
    wrapped = edgeq.QATFxModule(network("separable", rank).train(), total_epochs=2)
    model = DistributedDataParallel(wrapped)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(3):
        model.train()
        for batch in DATA[rank]:
            train_step(model, optimizer, batch)
        if epoch == 1:
            model.eval()
            model(DATA[rank][0])
    model.eval()
    return model


def half_frozen(rank):
    """Two epochs of DDP, in the second of which some layers stand still."""
    wrapped = edgeq.QATFxModule(network("separable").train(), total_epochs=2, freeze_layers="depthwise")
    model = DistributedDataParallel(wrapped, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    halves = []
    for _ in range(2):
        model.train()
        for batch in DATA[rank]:
            train_step(model, optimizer, batch)
        halves.append(snapshot(model.eval().module))
    return halves


def ranges_of_training(rank):
    """One epoch of DDP in which each process keeps its own buffers, until the epoch ends."""
    model = DistributedDataParallel(
        edgeq.QATFxModule(network("separable").train(), total_epochs=2), broadcast_buffers=False
    )
    for batch in DATA[rank]:
        model(batch)
    before = snapshot(model.module)
    return before, snapshot(model.eval().module)


def calibrated(data, preset="DEFAULT"):
    return edgeq.PTCFxModule(network("residual"), preset).calibrate(data)


def calibrated_in_ddp(rank):
    """Under DDP from before the first batch on, which in one of the processes is empty."""
    model = DistributedDataParallel(edgeq.PTCFxModule(network("residual"))).train()
    for batch in [DATA[rank][0][: 4 * rank], *DATA[rank]]:
        model(batch)
    return model.eval().module


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    trained = training(rank)
    results = {
        "trained": snapshot(trained.module),
        "ddp": snapshot(trained),
        "half frozen": half_frozen(rank),
        "ranges": ranges_of_training(rank),
        "calibrated": snapshot(calibrated(DATA[rank])),
        "calibrated in ddp": snapshot(calibrated_in_ddp(rank)),
        "extremes": snapshot(calibrated(DATA[rank], "MSA_WC8_AT8")),
    }
    torch.save(results, f"{folder}/{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(WORLD)]


def ending(state, *names):
    return {key: value for key, value in state.items() if key.endswith(names)}


def test_training_ends_with_equal_networks(results):
    assert changed(results[0]["trained"], results[1]["trained"]) == []
    assert int(results[0]["trained"]["module.quantization.schedule.epoch"]) == 2
    other = network("separable", 1).state_dict()["stem.0.weight"]  # what the second process began with
    assert not torch.equal(results[1]["trained"]["module.stem.0.weight"], other)


def test_ranges_are_merged_at_the_end_of_an_epoch(results):
    befores, afters = zip(*(result["ranges"] for result in results), strict=True)
    low, high = "module.quantization.tensors.x.observer.low", "module.quantization.tensors.x.observer.high"
    for key in (low, high):
        assert befores[0][key] != befores[1][key]
        torch.testing.assert_close(afters[0][key], (befores[0][key] + befores[1][key]) / 2)
    names = ("observer.low", "observer.high", "scale", "zero_point")
    activations = [{k: v for k, v in ending(after, *names).items() if ".tensors." in k} for after in afters]
    assert changed(*activations) == []


@pytest.mark.parametrize("way", ["calibrated", "calibrated in ddp"])
def test_calibration_ends_with_equal_networks(results, way):
    assert changed(results[0][way], results[1][way]) == []
    assert results[0][way]["module.quantization.tensors.x.observer.counts"].sum() > 0


def test_extremes_are_those_of_all_processes_together(results):
    alone = snapshot(calibrated([*DATA[0], *DATA[1]], "MSA_WC8_AT8"))
    for key, value in ending(alone, "observer.low", "observer.high").items():
        if ".tensors." in key:
            torch.testing.assert_close(results[0]["extremes"][key], value, rtol=1e-5, atol=1e-6)
    scale = "module.quantization.tensors.x.scale"
    assert torch.equal(results[0]["extremes"][scale], alone[scale])
    assert not torch.equal(snapshot(calibrated(DATA[0], "MSA_WC8_AT8"))[scale], alone[scale])


def test_a_checkpoint_of_ddp_loads_into_a_wrapper(results):
    wrapped = edgeq.QATFxModule(network("separable", 7), total_epochs=2)
    assert wrapped.load_weights(results[0]["ddp"], strict=True).complete
    assert changed(results[0]["trained"], wrapped) == []


def test_layers_stand_still_in_all_processes(results):
    for first, last in (result["half frozen"] for result in results):
        moved = {name.split(".")[1] for name in changed(first, last) if name.endswith(".0.weight")}
        assert moved == {"expand", "project"}
    assert not changed(*(result["half frozen"][1] for result in results))
