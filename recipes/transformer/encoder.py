"""A text classifier around PyTorch's transformer encoder, and one around an encoder of Hugging Face's."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from recipes.torchvision_import import import_torchvision
from recipes.transformer.tokenizer import PADDING


class TextEncoder(nn.Module):
    """Token ids (batch, length), int64, length at most `longest`, to logits (batch, classes), read at the first token.
    Tokens that pad are masked, so that the result does not depend on how many there are.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        longest: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.positions = nn.Embedding(longest, width)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of each class."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        x = self.encoder(x, src_key_padding_mask=tokens == PADDING)
        return self.head(x[:, 0])


class HuggingFaceEncoder(nn.Module):
    """The same with an encoder of the package transformers, of random weights: `name` is a type of model that it has
    for the classification of sequences, such as "bert" or "distilbert".
    """

    def __init__(
        self, name: str, vocabulary: int, classes: int, longest: int, width: int = 128, layers: int = 2, heads: int = 4
    ) -> None:
        with suppress(ImportError):  # transformers imports torchvision where that is installed
            import_torchvision()
        from transformers import AutoConfig, AutoModelForSequenceClassification

        super().__init__()
        config = AutoConfig.for_model(
            name,
            vocab_size=vocabulary,
            num_labels=classes,
            max_position_embeddings=longest + 1,  # RoBERTa counts positions from one more than its padding
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            pad_token_id=PADDING,
        )
        self.network = AutoModelForSequenceClassification.from_config(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of each class."""
        return self.network(input_ids=tokens, attention_mask=(tokens != PADDING).long(), return_dict=False)[0]
