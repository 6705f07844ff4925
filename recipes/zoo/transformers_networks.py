"""Small encoders of Hugging Face's transformers, built from a config, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recipes.torchvision_import import import_torchvision
from recipes.zoo.stages import Subject

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 64}
VISION = {**SMALL, "image_size": 64, "patch_size": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf_bert": ("Bert", TEXT),
    "hf_roberta": ("Roberta", TEXT),
    "hf_electra": ("Electra", {**TEXT, "embedding_size": 64}),
    "hf_albert": ("Albert", {**TEXT, "embedding_size": 32}),
    "hf_distilbert": ("DistilBert", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100}),
    "hf_mpnet": ("MPNet", TEXT),
    "hf_mobilebert": ("MobileBert", {**TEXT, "embedding_size": 32, "intra_bottleneck_size": 32}),
    "hf_squeezebert": ("SqueezeBert", {**TEXT, "embedding_size": 64}),
    "hf_xlm_roberta": ("XLMRoberta", TEXT),
    "hf_vit": ("ViT", VISION),
    "hf_deit": ("DeiT", VISION),
    "hf_dinov2": ("Dinov2", VISION),
    "hf_convnext": ("ConvNext", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "hf_resnet": ("ResNet", {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
    "hf_mobilevit": ("MobileViT", {"image_size": 128}),  # of 64, its last attention would be over one place
    "hf_segformer": ("Segformer", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
    "hf_swin": ("Swin", {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    "hf_poolformer": ("PoolFormer", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
}
FAMILIES = {
    "transformers text": tuple(name for name, (_, options) in CONFIGS.items() if "vocab_size" in options),
    "transformers vision": tuple(name for name, (_, options) in CONFIGS.items() if "vocab_size" not in options),
}
LENGTH, SIZE = 12, 64


def subject(name: str, family: str) -> Subject:
    """One of the networks above; a text encoder with a mask that leaves out the second text's last words."""
    if family.endswith("text"):
        return Subject(name, family, lambda: _build(name), _texts)
    size = CONFIGS[name][1].get("image_size", SIZE)
    return Subject(name, family, lambda: _build(name), lambda: (torch.randn(2, 3, size, size),))


def _texts() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, LENGTH // 2 :] = 0
    return torch.randint(3, 100, (2, LENGTH)), mask


def _build(name: str) -> nn.Module:
    import_torchvision()
    import transformers

    kind, options = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind}Model")(config)
