"""Mean and standard deviation are said once: by numbers, or by whatever standardises the images."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision import transforms
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from lightning_xai import explain
from lightning_xai.attribution import DeepLIFT, IntegratedGradients, RSIGradCAM, ScoreCAM
from lightning_xai.baselines import black, check_standardized, to_pixels
from lightning_xai.standard import found_standards, standard_of

MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)  # exact in float32
NORMALIZE = transforms.Normalize(MEAN, STD)


@pytest.mark.parametrize(
    "source",
    [
        NORMALIZE,
        v2.Normalize(list(MEAN), list(STD)),
        transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        transforms.Compose([transforms.ToTensor(), transforms.RandomApply([NORMALIZE])]),
        v2.Compose([v2.ToImage(), nn.Sequential(v2.CenterCrop(8), v2.Normalize(MEAN, STD))]),
        torchvision.transforms._presets.ImageClassification(crop_size=8, mean=MEAN, std=STD),
        timm.data.create_transform((3, 8, 8), mean=MEAN, std=STD),
        {"input_size": (3, 8, 8), "mean": MEAN, "std": STD},
        Subset(ConcatDataset([FakeData(4, transform=NORMALIZE), FakeData(2, transform=NORMALIZE)]), [0]),
    ],
    ids=lambda source: type(source).__name__,
)
def test_transforms_configurations_and_datasets_say_both(source):
    """Nobody has to copy the numbers out of them."""
    assert standard_of(source) == (MEAN, STD)


def test_a_timm_model_and_a_processor_say_both():
    """The model's own configuration, and the image processor of Hugging Face."""
    transformers = pytest.importorskip("transformers")
    assert standard_of(timm.create_model("resnet18")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert standard_of(transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD)) == (MEAN, STD)
    assert not found_standards(transformers.ViTImageProcessor(do_normalize=False))


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_numbers_may_come_in_any_sequence(make):
    """Lists, arrays and tensors have methods called mean and std, and are numbers nevertheless."""
    assert standard_of(make(MEAN), make(STD)) == (MEAN, STD)


@pytest.mark.parametrize(
    ("mean", "std", "error", "words"),
    [
        (0.5, 0.5, TypeError, r"`mean` and `std` expected one number for each channel, got 0.5 and 0.5. Pass"),
        (None, STD, TypeError, "expected one number for each channel, got None"),
        (MEAN, None, ValueError, "expected as many numbers"),
        (MEAN, (0.25,), ValueError, "expected as many numbers"),
        (MEAN, (0.25, 0.0, 1.0), ValueError, "above 0"),
        (NORMALIZE, STD, ValueError, "`std` expected None where `mean` says both"),
        (transforms.ToTensor(), None, TypeError, "got ToTensor, which does not"),
        (transforms.Compose([NORMALIZE, transforms.Normalize(STD, STD)]), None, ValueError, "expected one standard"),
    ],
)
def test_what_does_not_say_both_is_refused_in_words(mean, std, error, words):
    """A single number, one of two, different lengths, no standardisation, and two of them."""
    with pytest.raises(error, match=words):
        standard_of(mean, std)


def test_everything_that_takes_mean_and_std_takes_a_transform():
    """Attributions compute the same black from it, pictures the same pixels."""
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    standardised = NORMALIZE(images)
    check_standardized(standardised, NORMALIZE)
    torch.testing.assert_close(to_pixels(standardised, NORMALIZE), images)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for kind in (IntegratedGradients, DeepLIFT, RSIGradCAM, ScoreCAM):
        some = {"said": kind(baseline=black, mean=NORMALIZE), "numbers": kind(baseline=black, mean=MEAN, std=STD)}
        maps = explain(model, standardised, attributions=some)
        torch.testing.assert_close(maps["said"], maps["numbers"], rtol=0, atol=0)
        with pytest.raises(TypeError, match="expected one number for each channel"):
            kind(baseline=black, mean=0.5, std=0.5)
