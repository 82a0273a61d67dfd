"""What is lost is said once, and a rule that loses nothing."""

import warnings

import pytest
import timm
import torch
from attribution.lrp.test_forms import calibrated, relevance_and_error
from support import random_images, small_net
from torch import nn

from lightning_xai import LRP, SGLRP, explain
from lightning_xai.attribution.lrp.methods import Rules
from lightning_xai.attribution.lrp.rules import ZBox, lossless, z_plus


def made_by_biases():
    """Half of the logit comes from a channel that is empty, and a bias behind it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for i, weight in ((1, [[1.0, 0.0], [0.0, -1.0]]), (3, [[1.0, 0.0], [0.0, 1.0]]), (5, [[1.0, 1.0], [0.0, 1.0]])):
        model[i].weight.data, model[i].bias.data = torch.tensor(weight), torch.zeros(2)
    model[3].bias.data = torch.tensor([0.0, 1.0])
    return model, torch.ones(1, 1, 1, 2)


@pytest.mark.parametrize("method", [LRP(Rules(first=z_plus)), SGLRP(Rules(first=z_plus))])
def test_the_share_that_was_lost_is_said_once(method):
    """Of logit 2, 1 is left; of contrastive relevance, whose losses cancel, the same is known."""
    model, image = made_by_biases()
    with pytest.warns(UserWarning, match=r"LRP expected the relevance .* got 50% of it .*`Rules`"):
        explain(model, image, 0, attributions=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, image, 0, attributions=method)


@pytest.mark.parametrize("build", [small_net, lambda: timm.create_model("resnet18", num_classes=5)])
def test_ordinary_networks_are_explained_in_silence(build):
    """Warnings are errors here."""
    model = calibrated(build)
    explain(model, random_images(2, 64, dtype=torch.float64), attributions={"lrp": LRP(), "sglrp": SGLRP()})


def test_what_an_empty_channel_made_goes_to_its_neighbours():
    """`lossless` keeps all of the logit where z+ keeps half."""
    model, image = made_by_biases()
    maps = explain(model, image, 0, attributions=LRP(Rules(first=z_plus, linear=lossless)))
    torch.testing.assert_close(maps, torch.tensor([[[2.0, 0.0]]]))


@pytest.mark.parametrize("name", ["mobilenetv2_035", "repghostnet_050", "mobileone_s0"])
def test_lossless_conserves_where_z_plus_cannot(name):
    """Depthwise convolutions over empty channels, linear bottlenecks."""
    model, images = (
        calibrated(lambda: timm.create_model(name, num_classes=5)),
        random_images(2, 64, dtype=torch.float64),
    )
    with pytest.warns(UserWarning, match="LRP expected the relevance"):
        _, lost = relevance_and_error(model, images)
    _, error = relevance_and_error(model, images, Rules(ZBox(), lossless, lossless))
    assert lost.abs().min() > 0.1
    assert error.abs().max() < 0.05
