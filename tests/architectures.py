"""Small transformers and relatives with random weights, and where the outputs of their layers lie on the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2


@dataclass(frozen=True)
class Case:
    """A model, the layer that ``layer=None`` is to find in it, and another layer.

    Attributes:
        make: Makes the model.
        automatic: Name of the last layer whose patches reach the logits.
        layer: Name of a layer.
        by_hand: The output of that layer as (N,D,h,w), written for this architecture.
        size: Height and width of the images.
    """

    make: Callable[[], nn.Module]
    automatic: str
    layer: str
    by_hand: Callable[[Tensor], Tensor]
    size: tuple[int, int] = (64, 64)

    def model_and_images(self) -> tuple[nn.Module, Tensor]:
        """A seeded model in evaluation mode, and two images."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().eval()
            head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            nn.init.normal_(head.weight)  # that of torchvision's ViT begins with zeros
            return model, torch.randn(2, 3, *self.size)


def from_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A model of timm with five classes."""
    return lambda: timm.create_model(name, num_classes=5, **settings)


def patches_after(prefix: int, height: int = 4, width: int = 4) -> Callable[[Tensor], Tensor]:
    """Patches in reading order, after so many other tokens."""

    def by_hand(tokens: Tensor) -> Tensor:
        rows = [
            torch.stack([tokens[:, prefix + row * width + column] for column in range(width)], dim=-1)
            for row in range(height)
        ]
        return torch.stack(rows, dim=-2)

    return by_hand


def channels_last(output: Tensor) -> Tensor:
    """(N,h,w,D) as (N,D,h,w)."""
    return output.permute(0, 3, 1, 2)


def channels_first(output: Tensor) -> Tensor:
    """(N,D,h,w) as it is."""
    return output


VIT = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 4, "depths": (1, 2), "num_heads": (2, 2), "embed_dim": 24}


def torchvision_vit() -> nn.Module:
    """ViT of torchvision, whose head begins with zeros."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 24}
    return VisionTransformer(**sizes, num_classes=5)


def torchvision_swin(**blocks: Any) -> nn.Module:
    """Swin of torchvision, of version 2 with its blocks."""
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return SwinTransformer(**sizes, num_classes=5, **blocks)


def torchvision_swin_v2() -> nn.Module:
    """Swin version 2 of torchvision."""
    return torchvision_swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def torchvision_convnext() -> nn.Module:
    """ConvNeXt of torchvision, whose blocks normalise with their channels last."""
    return ConvNeXt([CNBlockConfig(12, 20, 1), CNBlockConfig(20, None, 1)], num_classes=5)


_vit = from_timm("vit_tiny_patch16_224", **VIT)
_distilled = from_timm("deit_tiny_distilled_patch16_224", **VIT)
_registers = from_timm("vit_little_patch16_reg4_gap_256", **VIT)
_class_and_registers = from_timm("vit_small_patch14_reg4_dinov2", **{**VIT, "img_size": 56})
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 12, 20, 24)}
_convnext, _convnext_atto = from_timm("convnext_tiny", **CONVNEXT), from_timm("convnext_atto", **CONVNEXT)
_swin, _swin_v2 = from_timm("swin_tiny_patch4_window7_224", **SWIN), from_timm("swinv2_tiny_window8_256", **SWIN)

CASES = {
    "timm ViT": Case(_vit, "blocks.1.norm1", "blocks.0", patches_after(1)),
    "timm ViT, an inner layer": Case(_vit, "blocks.1.norm1", "blocks.0.mlp.fc1", patches_after(1)),
    "timm ViT, patch embedding": Case(_vit, "blocks.1.norm1", "patch_embed", patches_after(0)),
    "timm ViT without class token": Case(
        from_timm("vit_tiny_patch16_224", class_token=False, global_pool="avg", **VIT), "norm", "norm", patches_after(0)
    ),
    "timm ViT, mean of the patches": Case(
        from_timm("vit_tiny_patch16_224", global_pool="avg", **VIT), "norm", "blocks.1", patches_after(1)
    ),
    "timm ViT with registers": Case(_registers, "norm", "blocks.1", patches_after(4)),
    "timm ViT with class token and registers": Case(
        _class_and_registers, "blocks.1.norm1", "blocks.1.norm1", patches_after(5), (56, 56)
    ),
    "timm ViT, image not square": Case(
        from_timm("vit_tiny_patch16_224", dynamic_img_size=True, **VIT),
        "blocks.1.norm1",
        "blocks.0",
        patches_after(1, 3, 5),
        (48, 80),
    ),
    "timm DeiT": Case(from_timm("deit_tiny_patch16_224", **VIT), "blocks.1.norm1", "blocks.0", patches_after(1)),
    "timm DeiT distilled": Case(_distilled, "blocks.1.norm1", "blocks.1.norm1", patches_after(2)),
    "timm EVA": Case(
        from_timm("eva02_tiny_patch14_224", **{**VIT, "img_size": 56}), "norm", "norm", patches_after(1), (56, 56)
    ),
    "timm hybrid": Case(
        from_timm("vit_tiny_r_s16_p8_224", **{**VIT, "img_size": 128}),
        "blocks.1.norm1",
        "blocks.1",
        patches_after(1),
        (128, 128),
    ),
    "timm Swin": Case(_swin, "norm", "layers.0", channels_last),
    "timm Swin, an inner layer": Case(_swin, "norm", "layers.1.blocks.0.norm2", patches_after(0, 8, 8)),
    "timm Swin v2": Case(_swin_v2, "norm", "layers.1.blocks.1", channels_last),
    "timm ConvNeXt": Case(_convnext, "norm_pre", "stages.2", channels_first),
    "timm ConvNeXt, an inner layer": Case(_convnext, "norm_pre", "stages.0.blocks.0.norm", channels_last),
    "timm ConvNeXt without channels last": Case(_convnext_atto, "norm_pre", "stages.0.blocks.0.norm", channels_first),
    "torchvision ViT": Case(
        torchvision_vit, "encoder.layers.encoder_layer_1.ln_1", "encoder.layers", patches_after(1), (32, 32)
    ),
    "torchvision Swin": Case(torchvision_swin, "permute", "features.1", channels_last),
    "torchvision Swin before any norm": Case(torchvision_swin, "permute", "features.0.1", channels_last),
    "torchvision Swin, image not square": Case(torchvision_swin, "permute", "norm", channels_last, (32, 64)),
    "torchvision Swin v2": Case(torchvision_swin_v2, "permute", "features.3.0.mlp", channels_last),
    "torchvision ConvNeXt": Case(torchvision_convnext, "features", "features.1", channels_first),
    "torchvision ConvNeXt, an inner layer": Case(
        torchvision_convnext, "features", "features.1.0.block.2", channels_last
    ),
}
