"""Where quantizers stand, as text: a change of placement is a diff of the files in tests/graph/golden.

After a change that is meant: ``EDGEQ_UPDATE_GOLDEN=1 python -m pytest tests/graph/test_golden.py``, and read the diff.
"""

import difflib
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.stubs import DeQuantStub, QuantStub
from tests.networks import network

FOLDER = Path(__file__).parent / "golden"
UPDATE = "EDGEQ_UPDATE_GOLDEN"


class Movers(nn.Module):
    """Concatenation, pooling, slices and splits, with a sigmoid and two clips of which one has two readers."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = torch.cat([F.max_pool2d(self.left(x), 2), F.max_pool2d(F.relu6(self.norm(self.right(x))), 2)], 1)
        y = self.mix(F.pad(y, (1, 1))[:, :, ::2])
        a, b = y.chunk(2, 1)
        gate = torch.sigmoid(a)
        clipped = F.relu6(b)
        resized = F.interpolate(b, scale_factor=2)
        return {"gated": gate * clipped, "sizes": (y.size(2), torch.argmax(y, 1)), "resized": resized}


class Masked(nn.Module):
    """PyTorch's attention with a mask, to itself and to another tensor, and its feed-forward block."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x, memory, mask):
        return self.layer(x, memory, memory_key_padding_mask=mask)


class Region(nn.Module):
    """Stubs around the middle, a square root in it, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.before, self.middle, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, x):
        y = self.middle(self.quant(self.before(x)))
        y = self.middle(torch.sqrt(F.relu(y)) + y)
        return self.after(self.dequant(y))


NETWORKS = {
    **{name: lambda name=name: network(name) for name in ("residual", "separable", "attention")},
    "movers": Movers,
    "region": Region,
    "masked": Masked,
}
PRESETS = {"ptc": "WC8_AT8", "qat": "WC4_AT8+WT8SYMP2_AT8SYMP2"}


@pytest.mark.parametrize("kind", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_quantizers_stand_where_they_stood(name, kind):
    model = NETWORKS[name]().eval()
    if kind == "ptc":
        wrapped = edgeq.PTCFxModule(model, PRESETS[kind])
    else:
        wrapped = edgeq.QATFxModule(model, PRESETS[kind], total_epochs=2)
    path, text = FOLDER / f"{name}_{kind}.txt", wrapped.explain() + "\n"
    if os.environ.get(UPDATE):
        path.write_text(text)
    assert path.exists(), f"{path} is missing: set {UPDATE}=1 to write it."
    golden = path.read_text()
    diff = "\n".join(difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm=""))
    assert text == golden, f"The placement of {name} changed. If it should, set {UPDATE}=1 and commit {path}.\n{diff}"


def test_each_golden_file_belongs_to_a_network():
    assert {path.stem for path in FOLDER.glob("*")} == {f"{name}_{kind}" for name in NETWORKS for kind in PRESETS}
