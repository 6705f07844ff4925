"""What a recovery takes of a loader, and what it refuses."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import CalibrationError
from edgeq.recovery.samples import Samples, calls_of, size_of


def batch(size, value=1.0):
    return torch.full((size, 3), value)


def test_batches_without_samples_do_not_count():
    samples = Samples(calls_of([batch(0), batch(2), batch(0), batch(3)]), 4)
    assert [size_of(call) for call in samples.seen + samples.held] == [2, 2]
    with pytest.raises(CalibrationError, match="no batch"):
        Samples(calls_of([batch(0)]), 4)


def test_a_batch_with_nan_is_named():
    with pytest.raises(CalibrationError, match=r"Batch 1 of the loader.*NaN"):
        Samples(calls_of([batch(2), {"x": batch(2, float("nan"))}]), 4)


class Chosen(nn.Module):
    """Gives the greatest of what a layer gives, or a number that floats cannot hold."""

    def __init__(self, gives):
        super().__init__()
        self.layer, self.gives = nn.Linear(3, 4), gives

    def forward(self, x):
        x = self.layer(x)
        return x.argmax(1) if self.gives == "index" else x.exp() * 1e38 * 1e38


@pytest.mark.parametrize(("gives", "message"), [("index", "no floating tensor"), ("infinity", "NaN or infinity")])
def test_outputs_that_nothing_can_be_judged_by_are_refused(gives, message):
    data = [torch.randn(4, 3) for _ in range(2)]
    model = edgeq.PTCFxModule(Chosen(gives).eval()).calibrate(data)
    with pytest.raises(CalibrationError, match=message):
        model.recover(data, ["bias_calibration"])
