"""The parts of transformers against AttnLRP's formulas, and whole transformers."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.attribution.lrp.methods import LRP, Rules
from lightning_xai.attribution.lrp.rules import Epsilon
from lightning_xai.trace import Capture, run

# small functions of tokens whose parts are compared, and random transformers whose biases take what is theirs
pytestmark = pytest.mark.filterwarnings("ignore:LRP expected the relevance of the pixels")

EPSILON = Rules(Epsilon(0.0), Epsilon(0.0), Epsilon(0.0))


class Function(nn.Module):
    """A function of tokens (N,L,E) made of an image (N,1,L,E), whose outputs are the logits."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images[:, 0]).flatten(1)


def example():
    """Tokens of one image, (1,1,3,4)."""
    return torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double()


def relevance_of(function, images, seeds):
    """Relevance of the tokens, (L,E), for relevance of the logits."""
    method = LRP(EPSILON, lambda logits, targets: seeds.view_as(logits))
    trace = run(Function(function), images, Capture(interception=EPSILON))
    with trace.computing():
        return method.relevance(trace, torch.tensor([0]))[0, 0]


def test_softmax_equals_its_taylor_expansion():
    """AttnLRP eq. 13: R_i = x_i (R_i - s_i sum_j R_j)."""
    images, seeds = example(), torch.arange(12.0).double().view(3, 4)
    x = images[0, 0]
    expected = x * (seeds - x.softmax(-1) * seeds.sum(-1, keepdim=True))
    torch.testing.assert_close(relevance_of(lambda x: x.softmax(-1), images, seeds), expected)


@pytest.mark.parametrize("affine", [False, True])
def test_layer_normalization_takes_its_scale_for_a_constant(affine):
    """A linear layer with weights (1[i = j] - 1/E) / std_j."""
    images, seeds = example(), torch.arange(12.0).double().view(3, 4)
    weight, bias = (torch.arange(1.0, 5.0).double(), torch.ones(4).double()) if affine else (None, None)
    x = images[0, 0]
    std = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    z = F.layer_norm(x, (4,), weight, bias)
    centering = (torch.eye(4) - 0.25).double() * (1 if weight is None else weight)
    expected = x * ((seeds / z / std) @ centering.T)
    found = relevance_of(lambda x: F.layer_norm(x, (4,), weight, bias), images, seeds)
    torch.testing.assert_close(found, expected)


def test_group_normalization_of_one_group_of_positions_is_layer_normalization():
    """Three channels are three groups of four positions."""
    images, seeds = example(), torch.arange(12.0).double()
    found = relevance_of(lambda x: F.group_norm(x, 3), images, seeds)
    torch.testing.assert_close(found, relevance_of(lambda x: F.layer_norm(x, (4,)), images, seeds))


def test_matrix_products_of_two_signals_give_half_to_each():
    """AttnLRP eq. 16 with A = x and V = 2 x^T: both halves arrive at x."""
    images, seeds = example(), torch.arange(9.0).double().view(3, 3)
    x = images[0, 0]
    z = x @ (2 * x.T)
    contributions = x[:, None] * (2 * x)[None]  # of each of E products to z_ij
    share = 0.5 * contributions * (seeds / z)[:, :, None]
    found = relevance_of(lambda x: x @ (2 * x.transpose(1, 2)), images, seeds)
    torch.testing.assert_close(found, share.sum(1) + share.sum(0))


def test_fused_attention_equals_attention_in_parts():
    """Softmax and two matrix products."""
    images, seeds = example(), torch.arange(12.0).double()

    def in_parts(x):
        return ((x @ (3 * x).transpose(1, 2)) / 2).softmax(-1) @ (x + x)

    fused = relevance_of(lambda x: F.scaled_dot_product_attention(x, 3 * x, x + x), images, seeds)
    torch.testing.assert_close(fused, relevance_of(in_parts, images, seeds))


def test_fused_attention_of_one_tensor_with_itself_gives_each_part_its_own():
    """It stands in three places, by position or by name."""
    images, seeds = example(), torch.arange(12.0).double()
    expected = relevance_of(lambda x: F.scaled_dot_product_attention(1 * x, 1 * x, 1 * x), images, seeds)
    torch.testing.assert_close(relevance_of(lambda x: F.scaled_dot_product_attention(x, x, x), images, seeds), expected)
    named = relevance_of(lambda x: F.scaled_dot_product_attention(x, value=x, key=x), images, seeds)
    torch.testing.assert_close(named, expected)


def test_products_with_a_constant_matrix_are_linear_layers():
    """``x @ W.T`` is ``F.linear(x, W)``."""
    images, seeds = example(), torch.arange(6.0).double()
    weight = nn.Parameter(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).double())
    found = [relevance_of(one, images, seeds) for one in (lambda x: x @ weight.T, lambda x: F.linear(x, weight))]
    torch.testing.assert_close(*found, rtol=0, atol=0)


TRANSFORMERS = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5),
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2, 2, 1), num_classes=5),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_run(name):
    """The logits are the model's, bit for bit, and relevance reaches the pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TRANSFORMERS[name]().double().eval()
    images = torch.rand(1, 3, *[56 if name == "swin" else 32] * 2).double()
    rules = Rules(linear=Epsilon())
    trace = run(model, images, Capture(interception=rules))
    with torch.no_grad():
        assert torch.equal(trace.logits, model(images))
    with trace.computing():
        relevance = LRP(rules).relevance(trace, torch.tensor([0]))
    assert relevance.isfinite().all()
    assert relevance.abs().sum() > 0


def test_torchs_own_attention_module_is_an_error():
    """All of it is one function, which cannot be seen into."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    with pytest.raises(NotImplementedError, match=r"`multi_head_attention_forward` in .*has no relevance rule"):
        relevance_of(lambda x: attention(x, x, x)[0], example(), torch.zeros(12))
