"""A small model of every family of timm, torchvision and transformers, with random weights, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.data.generated import GeneratedImages

SMALLEST_OF_TIMM = [
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224", "densenet121", "dla46x_c",
    "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_570m", "ghostnet_050", "hardcorenas_b",
    "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s", "lowformer_b0",
    "test_mambaout", "test_coatnet", "poolformerv2_s12", "gmlp_ti16_224", "lcnet_035", "mobilenetv5_base",
    "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny",
    "nextvit_small", "test_nfnet", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny",
    "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d", "test_resnet", "resnetv2_18",
    "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256", "swinv2_cr_tiny_224",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny",
    "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos", "samvit_base_patch16_224", "vitamin_small_224",
    "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p", "xcit_nano_12_p8_224",
]  # fmt: skip
"""The model with the fewest parameters of each module of timm 1.0.31, as `timm.list_modules()` names them."""
MORE_OF_TIMM = [
    "repvgg_a0", "mobileone_s0", "mixnet_s", "ecaresnet26t", "regnetv_040", "mobilenetv2_100",
    "mobilenetv3_small_100", "efficientnet_b0", "convnextv2_atto", "nf_resnet26", "resnet18",
]  # fmt: skip
"""Forms that the smallest of their family lack."""
OF_TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf",
    "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn",
    "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
"""One model of each family of torchvision."""
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
_STAGES = {"image_size": 64, "depths": [1, 1, 2, 1]}
_SWIN = {**_STAGES, "patch_size": 4, "window_size": 4, "embed_dim": 16, "num_heads": [1, 2, 2, 2]}
_PERCEIVER = {
    **{"num_latents": 16, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2},
    **{"num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 64},
}
_FEEDING = {"intermediate_size": 64}
OF_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Beit": _VIT | _FEEDING,
    "Bit": {"depths": [1, 1, 1, 1]},
    "CLIP": {"vision_config": _VIT | _FEEDING},
    "ConvNext": {**_STAGES, "hidden_sizes": [8, 12, 16, 24]},
    "ConvNextV2": {**_STAGES, "hidden_sizes": [8, 12, 16, 24]},
    "Cvt": {"depth": [1, 2, 3]},
    "Data2VecVision": _VIT | _FEEDING,
    "DeiT": _VIT | _FEEDING,
    "Dinov2": _VIT,
    "Dinov2WithRegisters": _VIT,
    "DonutSwin": _SWIN,
    "EfficientNet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 64},
    "FocalNet": {**_STAGES, "embed_dim": 16, "patch_size": 4},
    "HGNetV2": {},
    "Hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2, 1]},
    "IJepa": _VIT | _FEEDING,
    "Levit": {"image_size": 64},
    "MetaClip2": {"vision_config": _VIT | _FEEDING},
    "MobileNetV1": {"image_size": 64},
    "MobileNetV2": {"image_size": 64},
    "MobileViT": {"image_size": 64},
    "MobileViTV2": {"image_size": 64},
    "PPLCNet": {},
    "PerceiverForImageClassificationConvProcessing": _PERCEIVER,
    "PoolFormer": {"depths": [1, 1, 2, 1]},
    "Pvt": {**_STAGES, "hidden_sizes": [16, 32, 40, 64]},
    "PvtV2": {"image_size": 64},
    "RegNet": {"depths": [1, 1, 2, 1]},
    "ResNet": {"depths": [1, 1, 2, 1]},
    "Segformer": {},
    "Siglip": {"vision_config": _VIT | _FEEDING},
    "SwiftFormer": {"image_size": 64},
    "Swin": _SWIN,
    "Swinv2": _SWIN,
    "TextNet": {},
    "ViT": _VIT | _FEEDING,
    "ViTMSN": _VIT | _FEEDING,
}
"""Image classifiers of transformers 5.24 that take images (N,C,H,W), with what makes them small."""
NAMES = [
    *(f"timm:{name}" for name in (*SMALLEST_OF_TIMM, *MORE_OF_TIMM)),
    *(f"torchvision:{name}" for name in OF_TORCHVISION),
    *(f"transformers:{name}" for name in OF_TRANSFORMERS),
]
CLASSES = 10
SIZES: list[tuple[int, dict[str, Any]]] = [
    *((64, {"img_size": 64}), (64, {}), (96, {}), (128, {"img_size": 128}), (128, {}), (224, {}), (256, {}), (299, {})),
]
"""Sizes of images that are tried, and what the model is told of them."""
_SIZES = {
    **{"alexnet": 128, "coat_tiny": 224, "convmixer_768_32": 224, "efficientvim_m1": 128, "efficientvit_m0": 224},
    **{"inception_resnet_v2": 224, "inception_v3": 224, "inception_v4": 299, "tiny_vit_5m_224": 128},
}
"""Of networks of which each place of the last maps sees all of a smaller image, or whose last maps have one place."""
_SMALLER: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2, "embed_dim": 64, "num_heads": 2, "patch_size": 16},
    "gemma4_vit_570m": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "naflexvit_base_patch16_parfac_gap": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "samvit_base_patch16_224": {"depth": 2},
}
"""What makes the largest small."""


def create(name: str) -> tuple[nn.Module, Tensor]:
    """A model and eight images of the smallest size that it takes.

    Args:
        name: One of `NAMES`.

    Returns:
        The model in evaluation mode, and images (8,3,H,W).

    Raises:
        RuntimeError: If it takes no size of images.
    """
    library, kind = name.split(":")
    make = {"timm": _of_timm, "torchvision": _of_torchvision, "transformers": _of_transformers}[library]
    trouble: Exception | None = None
    for size, options in [one for one in SIZES if one[0] >= _SIZES.get(kind, 0)]:
        try:
            torch.manual_seed(0)
            model, images = make(kind, options), drawn(size)
            with torch.no_grad():
                model.eval()(images[:2])
            return calibrated(model, images), images
        except Exception as error:  # of another size, perhaps
            trouble = trouble or error
    raise RuntimeError(f"no size of images is right for {name}: {trouble}")


def _of_timm(kind: str, options: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(kind, num_classes=CLASSES, **options, **_SMALLER.get(kind, {}))


def _of_torchvision(kind: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    options = {"image_size" if one == "img_size" else one: value for one, value in options.items()}
    options |= {"aux_logits": False, "init_weights": True} if kind in ("googlenet", "inception_v3") else {}
    options |= {"input_size": (224, 224)} if kind == "maxvit_t" else {}
    return getattr(torchvision.models, kind)(num_classes=CLASSES, **options)


def class_of_transformers(kind: str) -> Any:
    """The class of a name of `OF_TRANSFORMERS`."""
    import transformers

    return getattr(transformers, kind if "ForImage" in kind else f"{kind}ForImageClassification")


def _of_transformers(kind: str, options: dict[str, Any]) -> nn.Module:
    made = class_of_transformers(kind)
    return made(made.config_class(num_labels=CLASSES, **OF_TRANSFORMERS[kind]))


def drawn(size: int) -> Tensor:
    """Eight drawn images, standardised, with some noise."""
    data = GeneratedImages(8, size=size)
    images = (data.images / 255 - 0.5) / 0.25
    return images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def calibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """Normalisations that are not neutral and know these images; a last layer that does not begin with zeros."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = None
        norm.train()
    for layer in [one for one in model.modules() if isinstance(one, nn.Linear)][-1:]:
        nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
    if norms:
        with torch.no_grad():
            model(images)
    return model.eval()
