"""Ablation-CAM against loops written from the paper, in float64."""

import pytest
import timm
import torch
import torch.nn.functional as F
from architectures import VIT
from support import activation, random_images, small_net, tail
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import AblationCAM
from lightning_xai.scores import log_softmax, pre_softmax


@pytest.fixture
def model():
    """Float64, with signed activations at ``bn1``."""
    return small_net().double()


@pytest.mark.parametrize(("score", "written"), [(pre_softmax, lambda z: z), (log_softmax, lambda z: z.log_softmax(0))])
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_ablation_cam_is_the_fall_of_the_score_without_each_channel(model, score, written, batch_size):
    """A channel at a time, whatever the sizes of the passes."""
    images = random_images(3, dtype=torch.float64)
    found = explain(model, images, [0, 1, 2], attributions=AblationCAM("bn1", score, batch_size=batch_size, relu=False))
    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        whole = activation(model, image)
        expected = torch.zeros(8, 8, dtype=torch.float64)
        for k in range(len(whole)):
            without = whole.clone()
            without[k] = 0
            fall = written(tail(model, whole))[target] - written(tail(model, without))[target]
            expected += fall.detach() * whole[k]
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)


def test_ablation_cam_needs_no_pass_for_channels_that_are_zero(model):
    """What is not there cannot be taken away."""
    model.bn1.weight.data[2], model.bn1.bias.data[2] = 0, 0
    sizes, images = [], random_images(3, dtype=torch.float64)
    model.conv1.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    explain(model, images, 1, attributions=AblationCAM("bn1"))
    assert sum(sizes) == 3 + 3 * (model.conv1.out_channels - 1)


def test_ablation_cam_takes_a_channel_from_the_patches_of_a_transformer():
    """The class token keeps its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **{**VIT, "embed_dim": 8}).double().eval()
        nn.init.normal_(model.head.weight)
    images = random_images(1, size=64, dtype=torch.float64)
    found = explain(model, images, 1, attributions=AblationCAM("blocks.0", pre_softmax, relu=False))

    def logits(channel=None):
        hidden = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        hidden = model.blocks[0](hidden)
        patches = hidden[0, 1:].T.reshape(8, 4, 4).detach()
        if channel is not None:
            hidden = hidden.clone()
            hidden[:, 1:, channel] = 0
        return model.forward_head(model.norm(model.blocks[1](hidden)))[0].detach(), patches

    whole, patches = logits()
    expected = sum((whole[1] - logits(k)[0][1]) * patches[k] for k in range(8))
    expected = F.interpolate(expected[None, None], size=(64, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
