"""Statistics of a batch that lies in two processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import edgeq
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from tests.networks import batches

WORLD = 2
STRATEGIES = [
    "batch",
    "corrected",
]  # the others leave the statistics to PyTorch's norm, which synchronizes on GPUs only
IMAGES = torch.cat(batches(3, seed=2))  # twelve, of which the first process has five
PARTS = [IMAGES[:5], IMAGES[5:]]


def step(images, strategy, synchronizes):
    """Outputs, gradients and statistics of one training step, at ranges of all the images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapped = edgeq.QATFxModule(model.train(), {"inherits": "DEFAULT", "batch_norm": strategy}, total_epochs=9)
    wrapped(IMAGES)
    wrapped.freeze(False, True)
    if synchronizes:
        nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
    output = wrapped(images)
    output.sin().sum().backward()
    norm = wrapped.module.quantized_layers()[0].site.norm
    assert isinstance(norm, nn.SyncBatchNorm) is synchronizes
    gradients = torch.cat([parameter.grad.flatten() for parameter in wrapped.parameters()])
    return output.detach(), gradients, torch.stack([norm.running_mean, norm.running_var])


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.save({strategy: step(PARTS[rank], strategy, True) for strategy in STRATEGIES}, f"{folder}/{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synchronized")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_compute_what_one_does_with_all_images(results, strategy):
    output, gradients, statistics = step(IMAGES, strategy, False)
    outputs, parts, seen = zip(*(result[strategy] for result in results), strict=True)
    torch.testing.assert_close(torch.cat(outputs), output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(parts), gradients, rtol=1e-3, atol=1e-3)
    for each in seen:
        torch.testing.assert_close(each, statistics, rtol=1e-4, atol=1e-6)
    alone = step(PARTS[0], strategy, False)[2]
    assert float((alone - statistics).abs().max()) > 1e-3


def test_these_are_the_strategies_that_compute_statistics_themselves():
    assert [name for name in NORM_STRATEGIES if not NORM_STRATEGIES[name].rounds_raw] == STRATEGIES
