"""PyTorch's transformer layers, written out over their own submodules.

Theirs is one opaque call where it may be. What they give for padded positions is what they give in training:
the shortcut that PyTorch takes in evaluation leaves zeros there, which nobody reads.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgeq.graph.decompose import decomposes

Value = Any  # a proxy of a tensor, or None


@decomposes(nn.TransformerEncoderLayer)
def encoder_layer(
    module: Any, src: Value, src_mask: Value = None, src_key_padding_mask: Value = None, is_causal: bool = False
) -> Value:
    """Self-attention and a feed-forward block, each with a residual."""

    def attend(x: Value) -> Value:
        return module.dropout1(_attention(module.self_attn, x, x, src_mask, src_key_padding_mask))

    if module.norm_first:
        x = src + attend(module.norm1(src))
        return x + _feed_forward(module, module.norm2(x), module.dropout2)
    x = module.norm1(src + attend(src))
    return module.norm2(x + _feed_forward(module, x, module.dropout2))


@decomposes(nn.TransformerDecoderLayer)
def decoder_layer(
    module: Any,
    tgt: Value,
    memory: Value,
    tgt_mask: Value = None,
    memory_mask: Value = None,
    tgt_key_padding_mask: Value = None,
    memory_key_padding_mask: Value = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Value:
    """Self-attention, attention to the encoder's output and a feed-forward block, each with a residual."""

    def attend(x: Value) -> Value:
        return module.dropout1(_attention(module.self_attn, x, x, tgt_mask, tgt_key_padding_mask))

    def look_up(x: Value) -> Value:
        return module.dropout2(_attention(module.multihead_attn, x, memory, memory_mask, memory_key_padding_mask))

    if module.norm_first:
        x = tgt + attend(module.norm1(tgt))
        x = x + look_up(module.norm2(x))
        return x + _feed_forward(module, module.norm3(x), module.dropout3)
    x = module.norm1(tgt + attend(tgt))
    x = module.norm2(x + look_up(x))
    return module.norm3(x + _feed_forward(module, x, module.dropout3))


def _attention(attention: Any, x: Value, memory: Value, mask: Value, padding: Value) -> Value:
    return attention(x, memory, memory, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0]


def _feed_forward(module: Any, x: Value, dropout: nn.Module) -> Value:
    return dropout(module.linear2(module.dropout(module.activation(module.linear1(x)))))


@decomposes(nn.TransformerEncoder)
def encoder(
    module: Any,
    src: Value,
    mask: Value = None,
    src_key_padding_mask: Value = None,
    is_causal: bool | None = None,
) -> Value:
    """The layers in turn. `is_causal` is only a hint of what `mask` is."""
    x = src
    for layer in module.layers:
        x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return x if module.norm is None else module.norm(x)


@decomposes(nn.TransformerDecoder)
def decoder(
    module: Any,
    tgt: Value,
    memory: Value,
    tgt_mask: Value = None,
    memory_mask: Value = None,
    tgt_key_padding_mask: Value = None,
    memory_key_padding_mask: Value = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Value:
    """The layers in turn. The causal hints say only what the masks are."""
    x = tgt
    for layer in module.layers:
        x = layer(
            x,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
        )
    return x if module.norm is None else module.norm(x)


@decomposes(nn.Transformer)
def transformer(
    module: Any,
    src: Value,
    tgt: Value,
    src_mask: Value = None,
    tgt_mask: Value = None,
    memory_mask: Value = None,
    src_key_padding_mask: Value = None,
    tgt_key_padding_mask: Value = None,
    memory_key_padding_mask: Value = None,
    src_is_causal: bool | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Value:
    """Encoder and decoder. The causal hints say only what the masks are."""
    memory = module.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
    return module.decoder(
        tgt,
        memory,
        tgt_mask=tgt_mask,
        memory_mask=memory_mask,
        tgt_key_padding_mask=tgt_key_padding_mask,
        memory_key_padding_mask=memory_key_padding_mask,
    )
