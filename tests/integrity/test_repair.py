"""Logits that sum to zero: by folding where that is exact, by wrapping everywhere else."""

import pytest
import torch
from integrity.toys import RectifiedToy, Toy, data, of_three_classes, trained
from support import Unhappy, assert_same_state, state_of
from torch import nn
from torch.nn.utils import parametrizations

from lightning_xai import GradCAM, InputGradient, explain
from lightning_xai.integrity import CenteredLogits, Verdict, center_logits, inspect_model
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import centered, pre_softmax
from papers.logit_shift.attacks import PositionShift, RowEdit
from papers.logit_shift.red_team import Edited, off_unlikely

IMAGES = data(16)[0].double()


def log_probabilities():
    """A network that ends in a log-softmax: folding its rows changes nothing."""
    return nn.Sequential(trained(), nn.LogSoftmax(1)).double().eval()


def weight_normed():
    """A network whose head's weights are computed."""
    model = trained().double()
    parametrizations.weight_norm(model.head)
    return model


MODELS = {
    "linear head": lambda: trained().double(),
    "edited rows": lambda: RowEdit(IMAGES, 10.0)(trained().double()),
    "convolutional head": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double(),
    "ReLU behind the head": lambda: trained(RectifiedToy).double(),
    "edited graph": lambda: PositionShift("relu2")(trained().double()),
    "log-softmax": log_probabilities,
    "computed weights": weight_normed,
}
may_be_told = pytest.mark.filterwarnings("ignore:Maps of the centred score")  # of log-probabilities, rightly
FOLDED = ["linear head", "edited rows", "convolutional head"]


@may_be_told
@pytest.mark.parametrize("name", MODELS)
def test_softmax_is_unchanged_and_logits_sum_to_zero(name):
    """To 1e-12 in float64, whichever way."""
    model = MODELS[name]()
    repaired = center_logits(model, IMAGES)
    before, after = model(IMAGES), repaired(IMAGES)
    torch.testing.assert_close(after.softmax(1), before.softmax(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(after.sum(1), torch.zeros_like(after[:, 0]), rtol=0, atol=1e-10)


@may_be_told
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_folded_only_where_that_is_exact(name):
    """Elsewhere the model is wrapped; folded ones keep their class and their keys."""
    model = MODELS[name]()
    repaired = center_logits(model, IMAGES)
    assert isinstance(repaired, CenteredLogits) == (name not in FOLDED)
    if name in FOLDED:
        assert repaired.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("name", "layer"), [("edited rows", "relu2"), ("edited graph", "model.relu2")])
def test_raw_maps_become_those_of_the_centered_score(name, layer):
    """Of the altered model's repair and of the altered model itself."""
    model = MODELS[name]()
    repaired = center_logits(model, IMAGES)
    inner = layer if name in FOLDED else f"model.{layer}"
    raw = explain(repaired, IMAGES, attributions=GradCAM(inner), score=pre_softmax)
    zero_sum = explain(model, IMAGES, attributions=GradCAM(layer), score=centered)
    torch.testing.assert_close(raw, zero_sum, rtol=0, atol=1e-9 * float(zero_sum.max()))


@pytest.mark.parametrize("name", ["edited rows", "edited graph"])
def test_repaired_models_are_found_clean(name):
    """The check flags the altered model and passes its repair."""
    model = MODELS[name]()
    assert inspect_model(model, IMAGES).verdict is Verdict.LOGIT_SHIFT
    assert inspect_model(center_logits(model, IMAGES), IMAGES).suspicion < 1e-9


class Tampered(nn.Module):
    """A classifier with an edit of its logits (N,K) by the images."""

    def __init__(self, edit):
        super().__init__()
        self.model, self.edit = trained().double(), edit
        self.eval()

    def forward(self, images):
        """The edited logits."""
        return self.edit(self.model(images), images)


def off_on_these(logits, images):
    """A shift that is on wherever an image is not one of the very probes."""
    on = ~torch.stack([(images == one).flatten(1).all(1) for one in IMAGES]).any(0)
    return logits + 10 * (on * images.square().mean((1, 2, 3)))[:, None]


def test_a_shift_that_is_off_on_the_images_is_not_folded_over():
    """Perturbed images pull it: the repair wraps, and holds everywhere."""
    model = Tampered(off_on_these)
    torch.testing.assert_close(model(IMAGES), model.model(IMAGES))
    repaired = center_logits(model, IMAGES)
    assert isinstance(repaired, CenteredLogits)
    others = data(8, seed=9)[0].double()
    torch.testing.assert_close(repaired(others).sum(1), torch.zeros(8).double(), rtol=0, atol=1e-10)


def test_a_shift_that_lives_in_gradients_alone_is_not_folded_over():
    """Logits sum to zero with it and without; the raw logit's gradient does not."""

    def silent(logits, images):
        shift = 10 * images.square().mean((1, 2, 3))
        return logits - logits.mean(1, keepdim=True) + (shift - shift.detach())[:, None]

    repaired = center_logits(Tampered(silent), IMAGES)
    assert isinstance(repaired, CenteredLogits)
    raw, rest = (explain(repaired, IMAGES, attributions=InputGradient(score=one)) for one in (pre_softmax, centered))
    torch.testing.assert_close(raw, rest)


@may_be_told
def test_a_backward_pass_that_lies_is_not_repaired_in_silence():
    """It answers to the largest entry of the gradient, which no wrapper takes away."""

    class Nonlinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.clone()

        @staticmethod
        def backward(ctx, gradient):
            turned = gradient.roll(1, 1)
            return torch.where(torch.rand(len(gradient), 1) < 0.5, turned, gradient)

    model = Tampered(lambda logits, images: Nonlinear.apply(logits))
    with torch.random.fork_rng(), pytest.raises(ValueError, match="backward pass that is that of its forward"):
        center_logits(model, IMAGES)


def test_a_centred_score_that_was_steered_is_not_made_the_raw_logits_in_silence():
    """Its maps would replace raw ones that are right: the warning names the score that is deaf to the attack."""
    honest, images = of_three_classes()
    model = Edited(honest, "relu2", off_unlikely(30.0, at=(2, 2)))
    center_logits(honest, images)  # in silence: warnings are errors here
    with pytest.warns(UserWarning, match=r"centred score look different.*score=log_odds"):
        repaired = center_logits(model, images)
    maps = [
        explain(one, images, attributions=GradCAM(f"{prefix}relu2", relu=False), score=pre_softmax)
        for one, prefix in ((honest, ""), (model, "model."), (repaired, "model.model."))
    ]
    assert rank_correlation(maps[0], maps[1]).min() > 0.99
    assert rank_correlation(maps[0], maps[2]).min() < 0.9


def test_without_images_the_model_is_wrapped():
    """Nothing could be verified."""
    assert isinstance(center_logits(trained()), CenteredLogits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_hide_a_relu(dtype):
    """The folding is tried in float32."""
    images = IMAGES.to(dtype)
    assert isinstance(center_logits(trained(RectifiedToy).to(dtype), images), CenteredLogits)
    folded = center_logits(trained().to(dtype), images)
    assert isinstance(folded, Toy)
    assert folded.head.weight.dtype == dtype


@may_be_told
@pytest.mark.parametrize("name", MODELS)
def test_model_is_left_as_it_is(name):
    """Also when the repaired model is trained."""
    model = MODELS[name]().train()
    before = state_of(model)
    repaired = center_logits(model, IMAGES)
    assert repaired.training
    repaired.eval()(IMAGES)[:, 0].sum().backward()
    torch.optim.SGD(repaired.parameters(), lr=1.0).step()
    assert_same_state(before, state_of(model))


def test_model_is_left_as_it_is_after_an_error():
    """The forward raises during the verification."""
    model = nn.Sequential(trained(), Unhappy())
    model[1].happy = False
    before = state_of(model)
    with pytest.raises(ArithmeticError):
        center_logits(model, IMAGES.float())
    assert_same_state(before, state_of(model))


def test_a_single_linear_layer_is_folded():
    """The model itself is the final layer."""
    model = nn.Conv2d(3, 4, 12).double()
    repaired = center_logits(nn.Sequential(model, nn.Flatten()), IMAGES)
    torch.testing.assert_close(repaired[0].weight, model.weight - model.weight.mean(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(repaired[0].bias, model.bias - model.bias.mean(), rtol=0, atol=1e-15)
