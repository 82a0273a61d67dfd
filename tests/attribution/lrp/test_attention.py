"""The parts of transformers against AttnLRP's formulas, and whole transformers."""

import dataclasses
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_xai.attribution.lrp.methods import LRP, Rules
from lightning_xai.attribution.lrp.rules import Epsilon
from lightning_xai.attribution.lrp.sums import in_proportion
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


def test_products_with_a_constant_on_the_left_give_all_to_the_signal():
    """A matrix is a linear layer of the transposed signal; of learnt queries each score is shared among the keys."""
    images, seeds = example(), torch.arange(8.0).double()
    weight = nn.Parameter(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double())
    expected = relevance_of(lambda x: F.linear(x.mT, weight).mT, images, seeds)
    torch.testing.assert_close(relevance_of(lambda x: weight @ x, images, seeds), expected, rtol=0, atol=0)
    x, z = images[0, 0], weight.detach() @ images[0, 0]
    share = (weight.detach()[:, :, None] * x * (seeds.view(2, 1, 4) / z[:, None])).sum(0)
    torch.testing.assert_close(relevance_of(lambda x: weight[None] @ x, images, seeds), share)


def test_attention_of_a_learnt_query_gives_half_to_keys_and_half_to_values():
    """Fused or in parts: the query is a constant, and loses nothing."""
    images, seeds = example(), torch.arange(8.0).double()
    query = nn.Parameter(torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(1)).double())
    fused = relevance_of(lambda x: F.scaled_dot_product_attention(query, 3 * x, x + x), images, seeds)
    parts = relevance_of(lambda x: (query @ (3 * x).mT / 2).softmax(-1) @ (x + x), images, seeds)
    torch.testing.assert_close(fused, parts)


def test_what_takes_the_place_of_a_part_has_its_relevance():
    """As the relative positions of MViT, which are written into the scores; what they replace gets nothing."""
    images, seeds = example(), torch.arange(1.0, 13).double()

    def assigned(x):
        hidden = x.abs()
        hidden[..., 0] = 3 * x[..., 1].abs()
        return hidden

    found = relevance_of(assigned, images, seeds).view(3, 4)
    expected = seeds.view(3, 4).clone()
    expected[:, 1] += expected[:, 0]
    expected[:, 0] = 0
    torch.testing.assert_close(found, expected)


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


def attnlrp_norm(norm, x):
    """Layer normalisation whose standard deviation is a constant."""
    std = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / std * norm.weight + norm.bias


def attnlrp_gelu(x):
    """The identity rule: all relevance of the output to the input."""
    return x * (F.gelu(x) / x).detach()


def attnlrp_product(a, b):
    """The gradient is half to each."""
    return (a @ b) / 2 + ((a @ b) / 2).detach()


def attnlrp_heads(x, weight, bias, heads):
    """Queries, keys and values of tokens (N,L,E), each (N,heads,L,E / heads)."""
    n, length, width = x.shape
    parts = (x @ weight.T + bias).view(n, length, 3, heads, width // heads)
    return (parts[:, :, i].transpose(1, 2) for i in range(3))


def attnlrp_vit(model, images):
    """Torchvision's ViT, written out, so that input times gradient is AttnLRP with the epsilon rule."""
    x = model.conv_proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1) + model.encoder.pos_embedding
    for block in model.encoder.layers:
        attention = block.self_attention
        normal = attnlrp_norm(block.ln_1, x)
        q, k, v = attnlrp_heads(normal, attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
        weights = (attnlrp_product(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + attention.out_proj(attnlrp_product(weights, v).transpose(1, 2).flatten(2))
        first, second = (one for one in block.mlp if isinstance(one, nn.Linear))
        x = x + second(attnlrp_gelu(first(attnlrp_norm(block.ln_2, x))))
    return model.heads(attnlrp_norm(model.encoder.ln, x)[:, 0])


def attnlrp_windows(x, weight, out, bias, window, heads, **named):
    """Torchvision's shifted windows, window by window and place by place."""
    n, height, width, _ = x.shape
    down, right = (
        0 if side <= window[0] else one for one, side in zip(named["shift_size"], (height, width), strict=True)
    )
    outputs = torch.zeros_like(x)
    for top in range(0, height, window[0]):
        for left in range(0, width, window[1]):
            ys, xs = torch.arange(top, top + window[0]), torch.arange(left, left + window[1])
            grid = [(y, z) for y in ys.tolist() for z in xs.tolist()]
            places = torch.tensor([((y + down) % height, (z + right) % width) for y, z in grid])

            def part(side, size, shift, at):
                return 0 if not shift or at < side - size else 1 if at < side - shift else 2

            regions = [(part(height, window[0], down, y), part(width, window[1], right, z)) for y, z in grid]
            apart = torch.tensor([[-100.0 * (one != other) for other in regions] for one in regions]).double()
            tokens = x[:, places[:, 0], places[:, 1]]
            q, k, v = attnlrp_heads(tokens, weight, named["qkv_bias"], heads)
            scores = attnlrp_product(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5 + bias[0] + apart
            mixed = attnlrp_product(scores.softmax(-1), v).transpose(1, 2).flatten(2)
            outputs = outputs.index_put(
                (torch.arange(n)[:, None], places[:, 0], places[:, 1]), mixed @ out.T + named["proj_bias"]
            )
    return outputs


def attnlrp_swin(model, images):
    """Torchvision's Swin, written out in the same way."""
    embedding, x = model.features[0], images
    x = attnlrp_norm(embedding[2], embedding[0](x).permute(0, 2, 3, 1))
    for stage in model.features[1:]:
        for block in stage if isinstance(stage, nn.Sequential) else [stage]:
            if hasattr(block, "reduction"):
                parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
                x = block.reduction(attnlrp_norm(block.norm, torch.cat(parts, -1)))
                continue
            attention = block.attn
            x = x + attnlrp_windows(
                attnlrp_norm(block.norm1, x), attention.qkv.weight, attention.proj.weight,
                attention.get_relative_position_bias(), attention.window_size, attention.num_heads,
                shift_size=attention.shift_size, qkv_bias=attention.qkv.bias, proj_bias=attention.proj.bias,
            )  # fmt: skip
            x = x + block.mlp[3](attnlrp_gelu(block.mlp[0](attnlrp_norm(block.norm2, x))))
    return model.head(attnlrp_norm(model.norm, x).mean((1, 2)))


OF_TORCHVISION = {
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5), attnlrp_vit),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], 2.0, num_classes=5),
        attnlrp_swin,
    ),
}


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_torchvisions_transformers_equal_attnlrp_written_out(name):
    """Input times the gradient of a network whose softmaxes, products and normalisations are made for it."""
    build, written_out = OF_TORCHVISION[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
        images = torch.randn(2, 3, 32, 32).double()
    rules = dataclasses.replace(EPSILON, signed_sums=in_proportion)
    trace = run(model, images, Capture(interception=rules))
    with trace.computing():
        found = LRP(rules).relevance(trace, torch.tensor([1, 2]))
    given = images.clone().requires_grad_()
    logits = written_out(model, given)
    torch.testing.assert_close(logits, trace.logits)
    (gradient,) = torch.autograd.grad(logits[0, 1] + logits[1, 2], given)
    torch.testing.assert_close(found, given.detach() * gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"kdim": 3, "vdim": 2}, {"bias": False}])
@pytest.mark.parametrize("masked", ["", "bool", "float", "padding"])
def test_torchs_attention_module_equals_its_parts(options, masked):
    """In its layouts, with masks, and with the weights that it gives on the side."""
    images, seeds = example(), torch.arange(12.0).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(4, 2, batch_first=True, **options).double().eval()
        nn.init.normal_(attention.out_proj.weight)
    above = torch.ones(3, 3).triu(1).bool()
    masks = {
        "": {},
        "bool": {"attn_mask": above},
        "float": {"attn_mask": torch.arange(9.0).double().view(1, 3, 3).repeat(2, 1, 1)},
        "padding": {"key_padding_mask": torch.tensor([[False, False, True]])},
    }
    given = masks[masked]

    def packed(x):
        return attention(x, x[..., : options.get("kdim", 4)], x[..., : options.get("vdim", 4)], **given)[0]

    def in_parts(x):
        if "kdim" in options:
            weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        else:
            weights = attention.in_proj_weight.chunk(3)
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        inputs = (x, x[..., : options.get("kdim", 4)], x[..., : options.get("vdim", 4)])
        q, k, v = (F.linear(*one).view(1, 3, 2, 2).transpose(1, 2) for one in zip(inputs, weights, biases, strict=True))
        scores = q @ k.transpose(-2, -1) / 2**0.5
        for mask in given.values():
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    found, expected = (relevance_of(one, images, seeds) for one in (packed, in_parts))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(packed(images[0]), in_parts(images[0]))


def test_added_keys_are_an_error():
    """They are no tokens of the image."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True, add_zero_attn=True).double().eval()
    with pytest.raises(NotImplementedError, match=r"`multi_head_attention_forward` in .*expected a batch and no added"):
        relevance_of(lambda x: attention(x, x, x)[0], example(), torch.zeros(12))


NORMALIZED = {
    "rms": lambda x: F.rms_norm(x, (4,), torch.arange(1.0, 5.0).double()),
    "vectors": lambda x: F.normalize(x, dim=-1),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_what_vectors_are_divided_by_is_a_constant(name):
    """All relevance of a number stays with it."""
    images, seeds = example(), torch.arange(12.0).double().view(3, 4)
    torch.testing.assert_close(relevance_of(NORMALIZED[name], images, seeds), seeds)


def test_einsum_is_a_product():
    """Half to each of two signals."""
    images, seeds = example(), torch.arange(9.0).double()
    found = relevance_of(lambda x: torch.einsum("nie,nje->nij", x, 2 * x), images, seeds)
    torch.testing.assert_close(found, relevance_of(lambda x: x @ (2 * x).transpose(1, 2), images, seeds))


def test_tensors_in_the_shape_of_another_descend_from_nobody():
    """A mask made by `new_zeros` is a constant: what it is used for needs no rule."""
    images, seeds = example(), torch.arange(12.0).double()
    found = relevance_of(lambda x: F.normalize(x, dim=-1) + x.new_zeros(3, 4).exp().log1p(), images, seeds)
    expected = relevance_of(lambda x: F.normalize(x, dim=-1) + math.log(2), images, seeds)
    torch.testing.assert_close(found, expected)
