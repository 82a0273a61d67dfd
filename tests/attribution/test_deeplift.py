"""DeepLIFT: completeness, answers on paper, and captum."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import DeepLIFT, InputXGradient
from lightning_xai.baselines import black
from lightning_xai.scores import centered, pre_softmax

BASELINE = torch.tensor(0.1)


def seeded(build):
    """A float64 model with seeded weights whose batch normalisation has seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        model.train()
        with torch.no_grad():
            model(torch.randn(4, 3, 64, 64))
        return model.double().eval()


def network(*middle):
    """Convolutions with something in between."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), *copy.deepcopy(middle), nn.Conv2d(6, 8, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


class Gated(nn.Module):
    """Squeeze and excitation, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(6, 6, 1)

    def forward(self, values):
        return F.relu(values).mul_(self.gate(values.mean((2, 3), keepdim=True)).sigmoid())


MIDDLES = {
    "relu": (nn.ReLU(),),
    "in-place relu": (nn.ReLU(inplace=True),),
    "silu": (nn.SiLU(inplace=True),),
    "tanh": (nn.Tanh(),),
    "max-pooling": (nn.ReLU(), nn.MaxPool2d(2)),
    "overlapping max-pooling": (nn.Tanh(), nn.MaxPool2d(3, 2, 1)),
    "average pooling": (nn.Sigmoid(), nn.AvgPool2d(2)),
    "gate": (Gated(),),
}


@pytest.mark.parametrize("score", [centered, pre_softmax])
@pytest.mark.parametrize("name", MIDDLES)
def test_maps_sum_to_the_difference_of_scores(name, score):
    """Completeness, for scores linear in the logits."""
    model, images = seeded(lambda: network(*MIDDLES[name])), random_images(3, 12, dtype=torch.float64)
    targets = torch.tensor([0, 2, 4])
    maps = explain(model, images, targets, attributions=DeepLIFT(score=score, baseline=BASELINE))
    with torch.no_grad():
        expected = score(model(images), targets) - score(model(torch.full_like(images, 0.1)), targets)
    torch.testing.assert_close(maps.sum((1, 2)), expected, rtol=1e-7, atol=1e-9)


ARCHITECTURES = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=5),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_complete(name):
    """Residual sums, gates, concatenation."""
    model, images = seeded(ARCHITECTURES[name]), random_images(2, 64, dtype=torch.float64)
    maps = explain(model, images, 1, attributions=DeepLIFT(baseline=BASELINE))
    with torch.no_grad():
        scores = [centered(model(one), torch.tensor([1, 1])) for one in (images, torch.full_like(images, 0.1))]
    torch.testing.assert_close(maps.sum((1, 2)), scores[0] - scores[1], rtol=1e-5, atol=1e-9)


def test_rescale_rule_gives_the_papers_answer():
    """Shrikumar et al. 2017 section 3.5.2 by hand: relu(x1 - 1) and relu(x2), from a baseline of zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[1].weight.data, model[1].bias.data = torch.eye(2), torch.tensor([-1.0, 0.0])
    model[3].weight.data = torch.tensor([[1.0, 2.0]])
    method = DeepLIFT(score=pre_softmax, baseline=torch.tensor(0.0))
    found = explain(model, torch.tensor([[[[4.0, 3.0]]]]), 1, attributions=method)
    torch.testing.assert_close(found[0, 0], torch.tensor([3.0, 6.0]))


def test_saturated_inputs_get_their_difference():
    """Where the gradient is zero: min(x1 + x2, 1) at (1, 1) of the paper's figure 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    model[1].weight.data, model[1].bias.data = torch.tensor([[-1.0, -1.0]]), torch.ones(1)
    model[3].weight.data, model[3].bias.data = torch.tensor([[-1.0]]), torch.ones(1)
    image = torch.ones(1, 1, 1, 2)
    gradient = explain(model, image, 1, attributions=InputXGradient(score=pre_softmax))
    found = explain(model, image, 1, attributions=DeepLIFT(score=pre_softmax, baseline=torch.tensor(0.0)))
    assert gradient[0, 0].tolist() == [0, 0]
    assert found[0, 0].tolist() == [0.5, 0.5]


def test_equal_image_and_baseline_give_zero():
    """And no NaN where there is no slope."""
    model = small_net()
    found = explain(model, torch.full((1, 3, 8, 8), 0.1), 1, attributions=DeepLIFT(baseline=BASELINE))
    assert found.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["relu", "silu", "max-pooling", "gate"])
def test_short_numbers_give_the_same_maps(dtype, name):
    """Also where image and baseline agree, and 1e-10 is zero."""
    model, images = seeded(lambda: network(*MIDDLES[name])), random_images(2, 12, dtype=torch.float64)
    images[:, :, :6] = 0.1
    expected = explain(model, images, 1, attributions=DeepLIFT(baseline=BASELINE))
    found = explain(model.to(dtype), images.to(dtype), 1, attributions=DeepLIFT(baseline=BASELINE))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_batch_equals_images_one_by_one():
    """No image sees another, nor another's baseline."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    method = DeepLIFT(baseline=BASELINE)
    one_by_one = torch.cat([explain(model, one, 1, attributions=method) for one in images.split(1)])
    torch.testing.assert_close(explain(model, images, 1, attributions=method), one_by_one)


def test_black_needs_the_standardisation():
    """As for integrated gradients."""
    with pytest.raises(ValueError, match="`mean` and `std`"):
        DeepLIFT(baseline=black)


def test_an_operation_without_a_rule_is_an_error():
    """A softmax in between is no function of one number."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Softmax(1), nn.Linear(3, 2))
    with pytest.raises(
        NotImplementedError, match=r"`softmax` in '2' \(Softmax\) couples its inputs: .* `IntegratedGradients`"
    ):
        explain(model, random_images(1), 1, attributions=DeepLIFT(baseline=BASELINE))


def test_the_model_is_as_before():
    """Modes, gradients, buffers."""
    model = small_net()
    before = state_of(model)
    explain(model, random_images(2), 1, attributions=DeepLIFT(baseline=BASELINE))
    assert_same_state(before, state_of(model))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # captum warns of the hooks it sets
@pytest.mark.parametrize("name", ["relu", "tanh", "average pooling", "max-pooling"])
def test_maps_equal_captums(name):
    """But for max-pooling, where captum's contributions do not sum to the difference and ours do (tested above)."""
    captum = pytest.importorskip("captum.attr")
    model, images = seeded(lambda: network(*MIDDLES[name])), random_images(3, 12, dtype=torch.float64)
    targets = torch.tensor([0, 2, 4])
    found = explain(model, images, targets, attributions=DeepLIFT(score=pre_softmax, baseline=BASELINE))
    baseline = torch.full_like(images, 0.1)
    theirs = captum.DeepLift(model).attribute(images, baseline, target=targets).sum(1).detach()
    if name == "max-pooling":
        difference = (model(images) - model(baseline)).gather(1, targets[:, None])[:, 0]
        assert not torch.allclose(theirs.sum((1, 2)), difference, rtol=1e-3)
    else:
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def test_differentiable_maps_are_refused():
    """Its slopes are constants of the backward pass: a gradient would be silently wrong."""
    with pytest.raises(RuntimeError, match="DeepLIFT's maps cannot be differentiated"):
        explain(small_net(), random_images(), attributions=DeepLIFT(baseline=torch.zeros(())), create_graph=True)
