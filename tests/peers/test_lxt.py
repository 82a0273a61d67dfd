"""Relevance of lxt (LRP-eXplains-Transformers, of the authors of AttnLRP): equal to ours through a transformer's block.

``pip install --no-deps lxt``: what is compared here needs torch alone, and its dependencies are large.
"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.attribution.lrp import LRP, Epsilon, Rules, in_proportion
from lightning_xai.trace import Capture, run

theirs = pytest.importorskip("lxt.explicit.functional")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:LRP expected the relevance of the pixels"),  # biases and softmax take theirs
]

RULES = dataclasses.replace(Rules(*[Epsilon(0.0)] * 3), signed_sums=in_proportion)
OURS = SimpleNamespace(
    linear=F.linear,
    matmul=torch.matmul,
    add=torch.add,
    softmax=lambda x: x.softmax(-1),
    gelu=F.gelu,
    normalized=lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
)


def of_lxt():
    """The same operations with their relevance for gradients, without the small numbers in denominators."""
    from lxt.explicit.rules import identity

    return SimpleNamespace(
        linear=lambda x, weight, bias: theirs.linear_epsilon(x, weight, bias, epsilon=0.0),
        matmul=lambda a, b: theirs.matmul_fn.apply(a, b, False, 0.0),
        add=lambda a, b: theirs.add2_tensors_fn.apply(a, b, False, 0.0),
        softmax=lambda x: theirs.softmax(x, -1),
        gelu=lambda x: identity(F.gelu, x),
        normalized=lambda x, weight, bias: theirs.layer_norm_grad_fn.apply(x, weight, bias, 1e-5, 0.0),
    )


class Block(nn.Module):
    """A transformer's block of two heads on tokens (N,L,E), in the operations given; the logits are its outputs."""

    def __init__(self, operations) -> None:
        super().__init__()
        self.operations = operations
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"qkv": (24, 8), "out": (8, 8), "up": (16, 8), "down": (8, 16)}.items():
            weight = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[1])
            self.register_buffer(name, weight)
            self.register_buffer(f"{name}_bias", torch.randn(shape[0], generator=generator, dtype=torch.float64) / 4)

    def forward(self, images):
        """Tokens lie in the rows of an image (N,1,L,E)."""
        run, tokens = self.operations, images[:, 0]
        scale, shift = torch.linspace(0.5, 1.5, 8).double(), torch.linspace(-0.3, 0.3, 8).double()
        hidden = run.linear(run.normalized(tokens, scale, shift), self.qkv, self.qkv_bias)
        query, key, value = (one.unflatten(-1, (2, 4)).transpose(1, 2) for one in hidden.chunk(3, -1))
        attention = run.softmax(run.matmul(query, key.transpose(-2, -1)))
        heads = run.matmul(attention, value).transpose(1, 2).flatten(2)
        tokens = run.add(tokens, run.linear(heads, self.out, self.out_bias))
        hidden = run.gelu(run.linear(run.normalized(tokens, scale, shift), self.up, self.up_bias))
        return run.add(tokens, run.linear(hidden, self.down, self.down_bias)).flatten(1)


def test_relevance_through_a_transformer_block_is_theirs():
    """Layer normalisation, attention, GELU, residual sums and linear layers together, in float64."""
    images = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seeds = torch.randn(2, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(Block(of_lxt())(leaf), leaf, seeds)
    trace = run(Block(OURS), images, Capture(interception=RULES))
    with trace.computing():
        found = LRP(RULES, lambda logits, targets: seeds).relevance(trace, torch.zeros(2, dtype=torch.long))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
