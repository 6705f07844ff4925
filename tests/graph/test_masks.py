"""Masks of attention: whatever their type and shape, they give what PyTorch gives, and never enter a range."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.graph.masks import mask_scores
from tests.graph.parity import assert_exact, images, relative_error
from tests.graph.test_attention import Network, assert_as_in_pytorch, prepared

X = images(3, 5, 8)
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)


def visible_somewhere(*shape):
    """A mask of what not to see, in which every query sees the first key."""
    mask = images(*shape, seed=7) > 0.3
    mask[..., 0] = False
    return mask


MASKS = {
    "boolean": {"attn_mask": LATER},
    "boolean of each head": {"attn_mask": visible_somewhere(6, 5, 5)},
    "floating": {"attn_mask": images(5, 5, seed=2)},
    "floating of each head": {"attn_mask": images(6, 5, 5, seed=2)},
    "infinite": {"attn_mask": torch.zeros(5, 5).masked_fill(LATER, -torch.inf)},
    "causal": {"attn_mask": LATER, "is_causal": True},
    "padding": {"key_padding_mask": PADDED},
    "floating padding": {"key_padding_mask": images(3, 5, seed=2)},
    "both": {"key_padding_mask": PADDED, "attn_mask": LATER},
}


def masked(names, **fixed):
    """A network that takes the masks as inputs, in order of their names."""

    def call(attention, x, *masks):
        return attention(x, x, x, **dict(zip(names, masks, strict=True)), **fixed)

    return Network(call, batch_first=True)


@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_inputs_give_what_pytorch_gives(name, need_weights):
    masks = {key: value for key, value in MASKS[name].items() if torch.is_tensor(value)}
    fixed = {key: value for key, value in MASKS[name].items() if not torch.is_tensor(value)}
    assert_as_in_pytorch(masked(list(masks), need_weights=need_weights, **fixed), X, *masks.values())


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_the_model_holds_give_what_pytorch_gives(name):
    assert_as_in_pytorch(Network(lambda a, x: a(x, x, x, **MASKS[name]), batch_first=True), X)


def test_a_mask_of_a_single_item_without_a_batch():
    assert_as_in_pytorch(masked(["key_padding_mask"]), X[1], PADDED[1])
    assert_as_in_pytorch(masked(["attn_mask"]), X[1], visible_somewhere(2, 5, 5))


@pytest.mark.parametrize("name", ["boolean", "infinite", "both"])
def test_masked_pairs_never_enter_a_range_and_convert_exactly(name):
    model = Network(lambda a, x: a(x, x, x, **MASKS[name]), batch_first=True)
    wrapped = prepared(model, X)
    assert all(0 < float(quantizer.scale) < 0.2 for quantizer in wrapped.module.quantizers())
    (mask, *_) = [line for line in wrapped.explain().splitlines() if line.startswith("mask_scores")]
    assert "stays float: the number that a mask adds or fills in has no code" in mask
    assert relative_error(assert_exact(wrapped, X)[0], model(X)[0]) < 0.05


def test_a_query_that_may_look_nowhere_spoils_nothing():
    nowhere = PADDED.clone()
    nowhere[1] = True
    model = masked(["key_padding_mask"])
    with torch.no_grad():
        output, weights = edgeq.PTCFxModule(model, example_inputs=(X, nowhere)).module.run_float(X, nowhere)
        expected = model.eval()(X, nowhere)
    assert expected[0][1].isnan().all()
    assert torch.equal(weights[1], torch.full((5, 5), 0.2))  # it looks everywhere alike
    torch.testing.assert_close(output[[0, 2]], expected[0][[0, 2]])
    assert output.isfinite().all()
    assert assert_exact(prepared(model, X, nowhere), X, nowhere)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_masked_score_has_no_share_in_a_softmax_of_any_type(dtype):
    scores = (images(2, 2, 5, 5) * 50).to(dtype)
    shares = torch.softmax(mask_scores(scores, LATER, keeps=False), -1)
    assert bool((shares[..., LATER] == 0).all())
    assert torch.equal(shares, torch.softmax(scores.masked_fill(LATER, -torch.inf), -1))
    assert torch.equal(shares, torch.softmax(mask_scores(scores, None, True, is_causal=True), -1))
    assert torch.equal(shares, torch.softmax(mask_scores(scores, LATER.logical_not(), keeps=True), -1))


def test_masks_are_exported(tmp_path):
    model = masked(["key_padding_mask", "attn_mask"])
    inputs = (X, PADDED, LATER)
    wrapped = prepared(model, *inputs, preset="WT8SYMP2_AT8SYMP2")
    result = wrapped.export(inputs, tmp_path / "masks.onnx")
    assert [parity.unequal for parity in result.parity] == [0, 0]
    assert result.nodes["Where"] == 2


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(self, x):
        q = self.q(x)
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def test_a_causal_mask_follows_the_length_of_the_sequence():
    wrapped = edgeq.PTCFxModule(Causal().eval())
    for length in (5, 9):
        x = images(2, 2, length, 8)
        with torch.no_grad():
            expected = wrapped.module.q(x)
            expected = F.scaled_dot_product_attention(expected, expected, expected, is_causal=True)
            torch.testing.assert_close(wrapped.module.run_float(x), expected, rtol=1e-5, atol=2e-6)
