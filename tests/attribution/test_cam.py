"""CAM methods against slow float64 references written from the papers, and known answers."""

import pytest
import torch
import torch.nn.functional as F
from support import OneConv, random_images, small_net
from torch import nn

from lightning_xai import GradCAM, GradCAMPlus, GradCAMPlusPlus, explain
from lightning_xai.attribution import CAM
from lightning_xai.scores import centered, log_softmax, post_softmax, pre_softmax

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


def test_log_and_post_softmax_give_the_same_gradcam_up_to_the_probability():
    """Grad p = p grad log p, so maps of homogeneous methods differ by the factor p."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    post, log = (explain(model, images, 2, attributions=GradCAM("conv2"), score=s) for s in (post_softmax, log_softmax))
    p = model(images).softmax(1)[:, 2, None, None].detach()
    torch.testing.assert_close(post, p * log, rtol=1e-9, atol=1e-15)


class Headed(nn.Module):
    """A convolution and a rectifier, and whatever follows them."""

    def __init__(self, *head) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
        self.head = nn.Sequential(*head)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5

    def forward(self, images):
        return self.head(self.body(images))


def pooling():
    """Global average pooling."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


LINEAR_HEADS = {
    "linear": lambda: (*pooling(), nn.Linear(5, 4)),
    "without bias": lambda: (*pooling(), nn.Linear(5, 4, bias=False)),
    "dropout": lambda: (*pooling(), nn.Dropout(), nn.Linear(5, 4)),
    "as many classes as channels": lambda: (*pooling(), nn.Linear(5, 5)),
    "convolution before pooling": lambda: (nn.Conv2d(5, 4, 1), *pooling()),
    "convolution after pooling": lambda: (nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 4, 1), nn.Flatten()),
    "one logit": lambda: (*pooling(), nn.Linear(5, 1)),
}
OTHER_HEADS = {
    "two layers": lambda: (*pooling(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)),
    "largest value": lambda: (nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    "normalised features": lambda: (*pooling(), nn.LayerNorm(5), nn.Linear(5, 4)),
    "no pooling": lambda: (nn.Flatten(), nn.Linear(5 * 36, 4)),
    "rectified logits": lambda: (*pooling(), nn.Linear(5, 4), nn.ReLU()),
    "rectified class maps": lambda: (nn.Conv2d(5, 4, 1), nn.ReLU(), *pooling()),
}


@pytest.mark.parametrize("head", LINEAR_HEADS.values(), ids=list(LINEAR_HEADS))
def test_cam_weights_channels_by_the_row_of_the_linear_layer(head):
    """Zhou et al. eq. 2 by hand; each image with its own class."""
    model, images = Headed(*head()).double().eval(), random_images(2, dtype=torch.float64)
    found = explain(model, images, [1, 0], attributions=CAM("body", relu=False))
    layer = next(one for one in model.head if isinstance(one, (nn.Linear, nn.Conv2d)))
    rows = layer.weight.flatten(1).detach()
    rows = [rows[1], rows[0]] if len(rows) > 1 else [rows[0], -rows[0]]  # of one logit target 0 is the negative
    for image, row, one in zip(images, rows, found, strict=True):
        cam = sum(weight * channel for weight, channel in zip(row, model.body(image[None])[0].detach(), strict=True))
        expected = F.interpolate(cam[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(one, expected)


def test_cam_of_class_maps_is_the_map_of_the_class():
    """As in SqueezeNet, where the last rectifier gives one map for each class, and pooling the logits."""
    model, images = Headed(nn.Conv2d(5, 4, 1), nn.ReLU(), *pooling()).eval(), random_images(2)
    maps = model.head[:2](model.body(images)).detach()
    found = explain(model, images, [3, 1], attributions=CAM("head.1"))
    expected = torch.stack([maps[0, 3], maps[1, 1]])[:, None]
    expected = F.interpolate(expected, size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", LINEAR_HEADS.values(), ids=list(LINEAR_HEADS))
def test_gradcam_is_cam_over_the_number_of_positions(head):
    """Where a linear head follows global average pooling the gradient is w / (h w)."""
    model, images = Headed(*head()).double().eval(), random_images(2, dtype=torch.float64)
    cam = explain(model, images, [0, 1], attributions=CAM("body", relu=False))
    gradcam = explain(model, images, [0, 1], attributions=GradCAM("body", pre_softmax, relu=False))
    torch.testing.assert_close(gradcam, cam / 36)


def test_the_mean_of_cam_is_the_logit_less_its_bias():
    """Pooling and the linear layer change places."""
    model, images = Headed(*pooling(), nn.Linear(5, 4)).double(), random_images(2, size=38, dtype=torch.float64)
    model.body[0].padding = 1  # the map has the image's size, so that nothing is resized
    cam = explain(model, images, 2, attributions=CAM("body", relu=False))
    expected = (model(images) - model.head[2].bias)[:, 2].detach()
    torch.testing.assert_close(cam.mean((1, 2)), expected)


@pytest.mark.parametrize("head", OTHER_HEADS.values(), ids=list(OTHER_HEADS))
def test_cam_is_refused_where_it_is_not_defined(head):
    """Anything between the pooled activations and the logits but one linear layer."""
    message = r"`layer` of CAM expected to be followed by global average pooling and one linear layer.*Use GradCAM"
    with pytest.raises(ValueError, match=message):
        explain(Headed(*head()).eval(), random_images(2), attributions=CAM("body"))


def test_cam_is_refused_at_a_layer_further_down():
    """A rectifier stands between."""
    model = Headed(*pooling(), nn.Linear(5, 4)).eval()
    with pytest.raises(ValueError, match=r"no module whose weight \(4, 5\) turns the layer's averaged activations"):
        explain(model, random_images(), attributions=CAM("body.0"))


def test_cam_is_refused_where_something_is_added_to_all_logits():
    """The weights no longer tell what the logit is made of (Lerma and Lucas 2023)."""

    class Shifted(Headed):
        def forward(self, images):
            hidden = self.body(images)
            return self.head(hidden) + hidden[:, :, 0, 0].sum(1, keepdim=True)

    with pytest.raises(ValueError, match="`layer` of CAM expected"):
        explain(Shifted(*pooling(), nn.Linear(5, 4)).eval(), random_images(), attributions=CAM("body"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cam_finds_the_head_in_low_precision(dtype):
    """Rounding of the logits is no other function."""
    model, images = Headed(*pooling(), nn.Linear(5, 4)).eval(), random_images(16)
    expected = explain(model, images, 0, attributions=CAM("body"))
    with torch.autocast("cpu", dtype):
        found = explain(model, images, 0, attributions=CAM("body"))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)  # of the same dtype: float32
    with pytest.raises(ValueError, match="`layer` of CAM expected"), torch.autocast("cpu", dtype):
        explain(Headed(*OTHER_HEADS["two layers"]()).eval(), images, attributions=CAM("body"))
