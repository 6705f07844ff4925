"""A sample of timm: the smallest network of each of its files, but for three of more than 100 million parameters."""

from __future__ import annotations

import torch
from torch import nn

from recipes.torchvision_import import import_torchvision
from recipes.zoo.stages import Subject

SAMPLE = (
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "convit_tiny", "convmixer_768_32"),
    *("convnext_atto_rms", "cpubone_nano", "crossvit_tiny_240", "cs3darknet_focus_s", "csatv2", "cspnext_tiny"),
    *("davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "ecaresnext26t_32x4d"),
    *("edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0"),
    *("efficientvit_m0", "ese_vovnet19b_slim_dw", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf"),
    *("gcvit_xxtiny", "ghostnet_050", "gmlp_ti16_224", "halonet_h1", "hardcorenas_b", "hgnetv2_b0"),
    *("hiera_tiny_224", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2"),
    *("inception_v3", "inception_v4", "lcnetv2_small", "legacy_seresnet18", "legacy_xception", "levit_128s"),
    *("lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256", "mobilenetv3_small_050", "mobilenetv5_base"),
    *("mobileone_s0", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny"),
    *("nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "poolformerv2_s12", "pvt_v2_b0"),
    *("qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d"),
    *("resnetv2_18", "rexnet_100", "sam2_hiera_tiny", "samvit_base_patch16_224", "selecsls42", "sequencer2d_s"),
    *("shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "test_vit_relpos", "tiny_vit_5m_224", "tinynet_e"),
    *("tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "visformer_tiny", "vit_tiny_patch16_224"),
    *("vit_tiny_patch16_dinov3_qkvb", "vit_tiny_r_s16_p8_224", "vitamin_small_224", "volo_d1_224", "xception41p"),
    "xcit_nano_12_p8_224",
)
PREFIX = "timm_"  # some names are torchvision's as well
FAMILIES = {"timm": tuple(f"{PREFIX}{name}" for name in SAMPLE)}
SIZES = {
    "halonet_h1": 256,
    "crossvit_tiny_240": 240,
    "csatv2": 256,
    "cs3darknet_focus_s": 256,
    "edgenext_xx_small": 256,
    "tinynet_e": 106,
    "vit_tiny_patch16_dinov3_qkvb": 256,
    "fastvit_t8": 256,
    "sam2_hiera_tiny": 256,
    "inception_resnet_v2": 299,
    "inception_v3": 299,
    "inception_v4": 299,
    "maxvit_pico_rw_256": 256,
    "mobilenetv5_base": 256,
    "mobilevit_xxs": 256,
    "naflexvit_base_patch16_gap": 256,
    "nasnetalarge": 256,
    "nf_regnet_b0": 192,
    "pnasnet5large": 256,
    "qwen3_vit_88m": 256,
    "swinv2_tiny_window8_256": 256,
    "test_vit_relpos": 160,
    "legacy_xception": 299,
    "xception41p": 299,
}
OPSETS = {"halonet_h1": 18, "volo_d1_224": 18}  # for windows that overlap: Unfold of an open size, and Col2Im


def subject(name: str, family: str) -> Subject:
    """One of the networks above."""
    own = name.removeprefix(PREFIX)
    size = SIZES.get(own, 224)
    opset = OPSETS.get(own)
    note = "" if opset is None else f"opset {opset}"

    def inputs() -> tuple[torch.Tensor, ...]:
        return (torch.randn(2, 3, size, size),)

    return Subject(name, family, lambda: _build(own), inputs, opset_version=opset, note=note)


def _build(name: str) -> nn.Module:
    import_torchvision()
    import timm

    return timm.create_model(name)
