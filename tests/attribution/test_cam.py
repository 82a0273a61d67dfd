"""CAM methods against slow float64 references written from the papers, and known answers."""

import pytest
import torch
import torch.nn.functional as F
from support import OneConv, random_images, small_net
from torch import nn

from lightning_xai import (
    GradCAM,
    GradCAMPlus,
    GradCAMPlusPlus,
    centered,
    explain,
    log_softmax,
    post_softmax,
    pre_softmax,
)

SCORES = {
    pre_softmax: lambda z, c: z[c],
    centered: lambda z, c: z[c] - z.mean(),
    post_softmax: lambda z, c: z.softmax(0)[c],
}


def body(model, images):
    """The network up to the explained layer, conv2."""
    return model.conv2(F.max_pool2d(model.bn1(model.conv1(images)).relu(), 2))


def tail(model, activation):
    """From one image's activation (D,h,w) to its logits (K,)."""
    return model.head(model.bn2(activation[None]).relu().mean((2, 3)))[0]


def reference(method, model, image, target, score):
    """The map of one image by loops over channels and positions, as the papers write it, before upsampling."""
    activation = body(model, image[None])[0].detach()
    gradient = torch.autograd.functional.jacobian(lambda a: SCORES[score](tail(model, a), target), activation)
    channels, height, width = activation.shape
    heat = torch.zeros(height, width, dtype=torch.float64)
    for k in range(channels):
        weight = torch.zeros((), dtype=torch.float64)
        for i in range(height):
            for j in range(width):
                g = gradient[k, i, j]
                if method is GradCAM:  # Selvaraju et al. eq. 1
                    weight += g / (height * width)
                elif method is GradCAMPlus:  # Lerma and Lucas eq. 3
                    weight += max(g, 0 * g) / (height * width)
                elif g > 0:  # Chattopadhay et al. eq. 19 in its literal form, eq. 4 of Lerma and Lucas
                    alpha = g**2 / (2 * g**2 + activation[k].sum() * g**3)
                    weight += alpha * g
        heat += weight * activation[k]
    return heat.relu()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("method", [GradCAM, GradCAMPlus, GradCAMPlusPlus])
def test_map_equals_the_reference(method, score):
    """All three methods, all scores, every class, in float64."""
    model = small_net().double()
    model.conv2.bias.data += 3  # activations sum to something positive, so that the literal Grad-CAM++ is regular
    images = random_images(3, dtype=torch.float64)
    targets = [0, 1, 2]
    maps = explain(model, images, targets, attributions=method("conv2"), score=score)
    for image, target, found in zip(images, targets, maps, strict=True):
        small = reference(method, model, image, target, score)
        expected = F.interpolate(small[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("layer", "expected"), [("conv1", [[11.25, 13.5], [20.25, 22.5]]), ("relu1", [[0.0, 4.0], [28.0, 32.5]])]
)
def test_gradcam_gives_captums_known_answers(layer, expected, inplace):
    """The numbers of captum's tests/attr/layer/test_grad_cam.py, at the resolution of the layer, in-place or not."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = explain(OneConv(inplace), image, 0, attributions=GradCAM(layer, relu=False), score=pre_softmax)
    expected = F.interpolate(torch.tensor([[expected]]), size=(4, 4), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected)


def test_gradcam_of_a_pooled_linear_head_is_cam_over_the_number_of_positions():
    """With global average pooling and a linear head the gradient is w / (h w), so Grad-CAM = CAM / (h w)."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    ).double()
    images = random_images(2, dtype=torch.float64)
    found = explain(model, images, 3, attributions=GradCAM("1", relu=False), score=pre_softmax)
    cam = torch.einsum("ndhw,d->nhw", model[:2](images), model[4].weight[3])
    expected = F.interpolate(cam[:, None] / 36, size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("method", [GradCAM, GradCAMPlus, GradCAMPlusPlus])
def test_centered_maps_do_not_see_a_logit_shift_and_raw_maps_do(method):
    """t(x) = 10 times the sum of the activations, added to all logits (paper 001)."""
    model = small_net(4).double()

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images):
            kept = []
            hook = self.inner.conv2.register_forward_hook(lambda module, args, output: kept.append(output))
            logits = self.inner(images)
            hook.remove()
            return logits + 10 * kept[0].sum((1, 2, 3))[:, None]

    images = random_images(3, dtype=torch.float64)
    shifted = Shifted().eval()

    def both(score):
        clean = explain(model, images, 1, attributions=method("conv2", relu=False), score=score)
        return clean, explain(shifted, images, 1, attributions=method("inner.conv2", relu=False), score=score)

    torch.testing.assert_close(*both(centered), rtol=1e-9, atol=1e-12)
    clean, moved = both(pre_softmax)
    assert (moved - clean).abs().max() > 0.5 * clean.abs().max()


def test_several_layers_are_fused_by_the_mean_of_their_normalised_maps():
    """Each layer's map counts alike, whatever the size of its values."""
    model, images = small_net(), random_images()
    both, first, second = (
        explain(model, images, 0, attributions=GradCAM(layer, relu=False))
        for layer in (("conv1", "conv2"), "conv1", model.conv2)
    )
    expected = sum(one / one.abs().amax((1, 2), keepdim=True) for one in (first, second)) / 2
    torch.testing.assert_close(both, expected)


def test_log_and_post_softmax_give_the_same_gradcam_up_to_the_probability():
    """Grad p = p grad log p, so maps of homogeneous methods differ by the factor p."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    post, log = (explain(model, images, 2, attributions=GradCAM("conv2"), score=s) for s in (post_softmax, log_softmax))
    p = model(images).softmax(1)[:, 2, None, None].detach()
    torch.testing.assert_close(post, p * log, rtol=1e-9, atol=1e-15)
