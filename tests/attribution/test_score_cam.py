"""Score-CAM against a loop over channels, its variants, and its passes."""

import pytest
import torch
import torch.nn.functional as F
from support import random_images, small_net
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import ScoreCAM
from lightning_xai.attribution.score_cam import channel_masks, increase_weights, softmax_weights
from lightning_xai.baselines import black, blurred
from lightning_xai.scores import post_softmax, pre_softmax

SCORES = {post_softmax: lambda z, c: z.softmax(0)[c], pre_softmax: lambda z, c: z[c]}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def reference(model, image, target, score, weights, baseline):
    """Algorithm 1 of Wang et al. for one image: channel by channel, one pass each, before the ReLU."""
    hidden = F.max_pool2d(model.bn1(model.conv1(image[None])).relu(), 2)
    activation = model.bn2(model.conv2(hidden)).relu()[0].detach()

    def f(x):
        return SCORES[score](model(x[None])[0].detach(), target)

    increases, alive = [], []
    for channel in activation:
        if channel.max() > channel.min():
            large = F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
            mask = (large - large.min()) / (large.max() - large.min())
            increases.append(f(image * mask + baseline * (1 - mask)) - f(baseline.expand_as(image)))
            alive.append(channel)
    increases = torch.stack(increases)
    alphas = increases.exp() / increases.exp().sum() if weights is softmax_weights else increases
    return sum(alpha * channel for alpha, channel in zip(alphas, alive, strict=True))


@pytest.fixture
def model():
    """A network one of whose channels is dead everywhere, and one on two of the images, float64."""
    net = small_net().double()
    net.relu2 = nn.ReLU()
    net.bn2.bias.data[2] = -100.0
    net.forward = lambda images: net.head(
        net.relu2(net.bn2(net.conv2(F.max_pool2d(net.relu(net.bn1(net.conv1(images))), 2)))).mean((2, 3))
    )
    return net


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("weights", [softmax_weights, increase_weights])
@pytest.mark.parametrize("baseline", [None, "black"])
def test_map_equals_the_reference(model, score, weights, baseline):
    """Both scores, both weights, zeros and black, in float64."""
    images = random_images(3, dtype=torch.float64)
    options = {} if baseline is None else {"baseline": black, "mean": MEAN, "std": STD}
    method = ScoreCAM("relu2", score, weights=weights, relu=False, **options)
    found = explain(model, images, [0, 1, 2], attributions=method)
    empty = torch.zeros(3, 1, 1, dtype=torch.float64) if baseline is None else black(images, MEAN, STD)
    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        small = reference(model, image, target, score, weights, empty)
        expected = F.interpolate(small[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-13)


def test_the_baseline_cancels_in_the_softmax_and_not_in_the_increases(model):
    """What all increases share is no weight; masks, filled with zeros in both, are the same."""
    increases = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    varied = torch.ones(2, 8, dtype=torch.bool)
    torch.testing.assert_close(softmax_weights(increases + 3, varied), softmax_weights(increases, varied))
    assert not torch.allclose(increase_weights(increases + 3, varied), increase_weights(increases, varied))


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_channels_that_are_constant_need_no_pass(model, batch_size):
    """One pass for the trace, one for the baseline, and one image for each channel that varies."""
    images, sizes = random_images(3, dtype=torch.float64), []
    kept = []
    model.relu2.register_forward_hook(lambda module, args, output: kept.append(output))
    model.conv1.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    explain(model, images, 1, attributions=ScoreCAM("relu2", batch_size=batch_size))
    varied = int((kept[0].amax((2, 3)) > kept[0].amin((2, 3))).sum())
    assert varied <= 3 * 7
    assert sizes[:2] == [3, 3]
    assert sum(sizes[2:]) == varied
    assert max(sizes[2:]) <= (batch_size or 3)


def test_nothing_is_shown_where_all_channels_are_constant():
    """No channel counts: a map of zeros, without NaN, also in its derivative."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].bias.data -= 100
    maps = explain(model, random_images(2), 1, attributions=ScoreCAM("1"), create_graph=True)
    assert maps.abs().max() == 0
    gradients = torch.autograd.grad(maps.sum(), model[0].weight)
    assert gradients[0].isfinite().all()


def test_constant_channels_get_no_weight():
    """Neither in the softmax nor as an increase."""
    increases, varied = torch.tensor([[1.0, 5.0, 1.0]]), torch.tensor([[True, False, True]])
    assert softmax_weights(increases, varied).tolist() == [[0.5, 0.0, 0.5]]
    assert increase_weights(increases, varied).tolist() == [[1.0, 0.0, 1.0]]


def test_the_softmax_of_probabilities_hardly_tells_channels_apart(model):
    """The map is the mean activation, up to a few percent, for any class; that of the increases is not."""
    images = random_images(3, dtype=torch.float64)
    blind = [
        explain(model, images, target, attributions=ScoreCAM("relu2", post_softmax)).flatten(1) for target in (0, 1)
    ]
    seeing = [
        explain(
            model, images, target, attributions=ScoreCAM("relu2", post_softmax, weights=increase_weights, relu=False)
        )
        for target in (0, 1)
    ]
    assert torch.cosine_similarity(*blind).min() > 0.98
    assert torch.cosine_similarity(*(one.flatten(1) for one in seeing)).max() < 0.9


def test_channels_last_images_are_passed_as_they_are(model):
    """The memory format is the caller's, and the map the same."""
    images, formats = random_images(3, dtype=torch.float64), []
    expected = explain(model, images, 1, attributions=ScoreCAM("relu2"))
    model.conv1.register_forward_pre_hook(lambda module, args: formats.append(args[0].is_contiguous()))
    found = explain(model, images.contiguous(memory_format=torch.channels_last), 1, attributions=ScoreCAM("relu2"))
    assert not any(formats)
    torch.testing.assert_close(found, expected)
    formats.clear()
    explain(model, images, 1, attributions=ScoreCAM("relu2"))
    assert all(formats)


def test_masks_are_normalised_after_resizing():
    """Bilinear resizing flattens peaks; each mask still reaches from 0 to 1, and a constant channel masks all."""
    channels = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]], [[4.0] * 3] * 3])
    masks = channel_masks(channels, torch.zeros(2, 3, 6, 6))
    assert masks.amax((1, 2)).tolist() == [1.0, 0.0]
    assert masks.amin((1, 2)).tolist() == [0.0, 0.0]


def test_a_baseline_may_be_a_function_of_the_images(model):
    """Such as the blurred image, one for each."""
    images = random_images(3, dtype=torch.float64)
    function = explain(model, images, 1, attributions=ScoreCAM("relu2", baseline=blurred, mean=MEAN, std=STD))
    given = explain(model, images, 1, attributions=ScoreCAM("relu2", baseline=blurred(images, MEAN, STD)))
    assert torch.equal(function, given)
    assert not torch.allclose(function, explain(model, images, 1, attributions=ScoreCAM("relu2")))


def test_a_baseline_function_needs_mean_and_std():
    """When the method is made."""
    with pytest.raises(ValueError, match="`mean` and `std` expected what the images were standardised by"):
        ScoreCAM(baseline=black)


def test_a_baseline_of_another_shape_is_refused():
    """With both shapes."""
    with pytest.raises(ValueError, match=r"`baseline` expected a tensor that broadcasts.*got \(5, 1, 1\)"):
        explain(small_net(), random_images(), attributions=ScoreCAM("conv2", baseline=torch.zeros(5, 1, 1)))
