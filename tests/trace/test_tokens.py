"""Transformers and channels-last layers: where on the image an output lies, and what the methods make of it."""

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, VIT, Case, from_timm, patches_after
from support import assert_same_state, random_images, state_of
from torch import Tensor, nn

from lightning_xai import GradCAM, GradCAMPlusPlus, GuidedGradient, InputGradient, explain
from lightning_xai.scores import centered, pre_softmax
from lightning_xai.trace import Capture, run
from lightning_xai.trace.layers import find_layer
from lightning_xai.types import Tokens

TARGETS = torch.tensor([1, 3])


def every() -> pytest.MarkDecorator:
    """All architectures."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


# Activations and gradients at their places


@every()
def test_activation_and_gradient_are_arranged_as_by_hand(case: Case) -> None:
    """The output of a plain pass and the gradient that autograd gives of it, patch by patch."""
    model, images = case.model_and_images()
    layer = find_layer(model, case.layer)
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    scores = centered(model(images), TARGETS)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), outputs[0])

    trace = run(model, images, Capture({case.layer: layer}))
    assert trace.activation(case.layer).ndim == 4
    torch.testing.assert_close(trace.activation(case.layer), case.by_hand(outputs[0].detach()))
    found = trace.gradient(centered, TARGETS, of=case.layer)
    torch.testing.assert_close(found, case.by_hand(gradient), rtol=1e-4, atol=1e-6)
    assert (found != 0).any() == (case.by_hand(gradient) != 0).any()


def test_tokens_given_and_found_are_the_same() -> None:
    """Named layer and module, by themselves and as Tokens."""
    model, images = CASES["timm ViT"].model_and_images()
    layers = ["blocks.1.norm1", model.blocks[1].norm1]
    given = [Tokens(layer, grid=(4, 4), prefix=1) for layer in layers]
    first, *others = (explain(model, images, 1, attributions=GradCAM(layer)) for layer in layers + given)
    assert first.max() > 0
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_tokens_stand_among_several_layers() -> None:
    """The mean of both maps, each divided by its maximum."""
    model, images = CASES["timm ViT"].model_and_images()
    tokens = Tokens("blocks.1.norm1", grid=(4, 4), prefix=1)
    both = explain(model, images, 1, attributions=GradCAM(("blocks.0", tokens)))
    alone = [explain(model, images, 1, attributions=GradCAM(layer)) for layer in ("blocks.0", "blocks.1.norm1")]
    torch.testing.assert_close(both, sum(one / one.amax((1, 2), keepdim=True) for one in alone) / 2)


def test_grad_cam_of_a_vit_is_that_of_its_definition() -> None:
    """Tokens without the class token as feature maps, mean gradients as weights, written from the paper in float64."""
    model, images = CASES["timm ViT"].model_and_images()
    model, images = model.double(), images.double()
    outputs: list[Tensor] = []
    handle = model.blocks[1].norm1.register_forward_hook(lambda module, args, output: outputs.append(output))
    (gradient,) = torch.autograd.grad(model(images)[range(2), TARGETS].sum(), outputs[0])
    handle.remove()
    expected = torch.zeros(2, 4, 4, dtype=torch.float64)
    for image in range(2):
        weights = gradient[image, 1:].mean(0)
        for patch, token in enumerate(outputs[0][image, 1:].detach()):
            expected[image, patch // 4, patch % 4] = (weights * token).sum().relu()
    expected = F.interpolate(expected[None], size=(64, 64), mode="bilinear", align_corners=False)[0]
    found = explain(model, images, TARGETS, attributions=GradCAM("blocks.1.norm1", score=pre_softmax))
    torch.testing.assert_close(found, expected)


class OneBlock(nn.Module):
    """A transformer of one block without biases, whose tokens are zero wherever the image is."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4, bias=False)
        self.token = nn.Parameter(torch.randn(1, 1, 8)) if class_token else None
        self.norm1 = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.norm2 = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        hidden = self.norm1(tokens)
        tokens = tokens + F.scaled_dot_product_attention(self.query(hidden), self.key(hidden), self.value(hidden))
        tokens = self.norm2(tokens)
        return self.head(tokens.mean(1) if self.token is None else tokens[:, 0])


@pytest.mark.parametrize(("class_token", "layer"), [(True, "norm1"), (True, None), (False, "norm1")])
def test_grad_cam_peaks_at_the_only_patch_that_matters(class_token: bool, layer: str | None) -> None:
    """A black image but for one patch: where there is nothing, the first norm gives 0, so that the map is 0, too."""
    torch.manual_seed(0)
    model, images = OneBlock(class_token), torch.zeros(1, 1, 12, 20)
    images[:, :, 4:8, 12:16] = torch.rand(4, 4)  # row 1, column 3
    maps = explain(model, images, 1, attributions=GradCAM(layer, relu=False))
    cells = maps[0, 2::4, 2::4]  # near the centres of the patches
    assert cells.abs().flatten().argmax() == 1 * 5 + 3
    assert maps[0, :, :8].abs().max() == 0


# What cannot be told is refused


class Patchify(nn.Module):
    """A transformer whose patches are cut by reshaping: no layer has the form of a grid."""

    def __init__(self, before: nn.Module | None = None, queries: int = 0) -> None:
        super().__init__()
        self.before = nn.Identity() if before is None else before
        self.queries = nn.Parameter(torch.randn(1, queries, 12))
        self.embed = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(self.before(images), 2, stride=2).transpose(1, 2)
        patches = torch.cat([self.queries.expand(len(images), -1, -1), self.embed(patches)], 1)
        return self.head(self.norm(patches).mean(1))


@pytest.mark.parametrize("before", [None, nn.Conv2d(3, 3, 3, padding=1)])
@pytest.mark.parametrize("layer", ["norm", None])
def test_a_grid_that_no_layer_has_is_found(layer: str | None, before: nn.Module | None) -> None:
    """Four rows of four patches, also where the only feature maps have eight."""
    torch.manual_seed(0)
    model, images = Patchify(before), random_images()
    found, given = (
        explain(model, images, 1, attributions=GradCAM(one)) for one in (layer, Tokens("norm", grid=(4, 4)))
    )
    assert torch.equal(found, given)


@pytest.mark.parametrize(
    ("before", "queries"),
    [
        pytest.param(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Upsample(size=8)), 0, id="four patches see the same"),
        pytest.param(nn.Sequential(nn.AdaptiveAvgPool2d((2, 8)), nn.Upsample(size=8)), 0, id="two rows see the same"),
        pytest.param(None, 9, id="too many other tokens"),
    ],
)
@pytest.mark.parametrize("layer", ["norm", None])
def test_places_that_are_not_clear_are_to_be_given(before: nn.Module | None, queries: int, layer: str | None) -> None:
    """And once given, the map is there."""
    torch.manual_seed(0)
    model, images = Patchify(before, queries), random_images()
    with pytest.raises(ValueError, match=r"`layer` 'norm' expected.* nothing fits. Give .*`Tokens\('norm', "):
        explain(model, images, attributions=GradCAM(layer))
    assert explain(model, images, attributions=GradCAM(Tokens("norm", (4, 4), queries))).shape == (4, 8, 8)


def test_channels_before_tokens_are_found() -> None:
    """Feature maps (N,D,hw) after a flattening are where they were before."""
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    images, layers = random_images(), (None, "1", Tokens("1", (4, 4), axes="NDT"), "0")
    *found, expected = (explain(model, images, 1, attributions=GradCAM(layer)) for layer in layers)
    for maps in found:
        torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def test_equally_many_channels_rows_and_columns_are_told_apart() -> None:
    """(N,4,4,4) normalised over the last dimension, which here is that of the columns."""
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.LayerNorm(4), nn.AvgPool2d(4), nn.Flatten())
    images = random_images()
    found = run(model, images, Capture({"1": model[1]})).activation("1")
    torch.testing.assert_close(found, model[1](model[0](images)), rtol=0, atol=0)
    tokens = Tokens("1", (4, 4))
    found = run(model, images, Capture({tokens: model[1]})).activation(tokens)
    torch.testing.assert_close(found, model[1](model[0](images)).permute(0, 3, 1, 2), rtol=0, atol=0)


def test_an_order_of_tokens_can_be_given() -> None:
    """Column by column, tokens before images, one of them no patch."""
    torch.manual_seed(0)

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.tokens, self.head = nn.Conv2d(3, 5, 4, stride=4), nn.Identity(), nn.Linear(5, 2)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).transpose(2, 3).flatten(2).permute(2, 0, 1)
            return self.head(self.tokens(torch.cat([tokens[:1], tokens])).mean(0))

    model, images = Columns(), torch.randn(2, 3, 8, 12)
    tokens = Tokens("tokens", (2, 3), prefix=1, axes="TND", order=(0, 2, 4, 1, 3, 5))
    trace = run(model, images, Capture({tokens: model.tokens, "patches": model.patches}))
    torch.testing.assert_close(trace.activation(tokens), trace.activation("patches"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Tokens("blocks.0", (4, 4)), r"0 \+ 4 \* 4 tokens.*the axes NTD, got \(2, 17, 48\)"),
        (Tokens("blocks.0", (4, 4), order=tuple(range(2, 18))), r"2 images.*got \(2, 17, 48\)"),
        (Tokens("blocks.0", (1, 2), axes="TND"), r"of 2 images.*the axes TND, got \(2, 17, 48\)"),
        (Tokens("patch_embed.proj", (8, 96)), r"as many rows and columns.*got \(2, 48, 4, 4\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens: Tokens, message: str) -> None:
    """The message shows what was given and what came."""
    model, images = CASES["timm ViT"].model_and_images()
    with pytest.raises(ValueError, match=message):
        explain(model, images, attributions=GradCAM(tokens))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, (4, 4)), TypeError, "`layer` expected a name or a Module, got 3"),
        (("norm", [4, 4]), ValueError, r"`grid` expected a tuple.*got \[4, 4\]"),
        (("norm", (4, 0)), ValueError, "`grid` expected"),
        (("norm", (4, 4), -1), ValueError, "`prefix` expected"),
        (("norm", (4, 4), 0, "NHWC"), ValueError, "`axes` expected .NTD., .TND. or .NDT., got .NHWC."),
        (("norm", (1, 3), 0, "NTD", (0, 1, 1)), ValueError, "`order` expected a tuple of 3 different tokens"),
    ],
)
def test_wrong_tokens_are_told_about_at_once(arguments: tuple, error: type[Exception], message: str) -> None:
    """Before any pass."""
    with pytest.raises(error, match=message):
        Tokens(*arguments)


def test_near_names_are_listed_for_tokens_too() -> None:
    """A layer that does not exist."""
    model, images = CASES["timm ViT"].model_and_images()
    with pytest.raises(ValueError, match=r"got 'blocks.1.norm3'. Near names: .*blocks.1.norm"):
        explain(model, images, attributions=GradCAM(Tokens("blocks.1.norm3", (4, 4), 1)))


# Whole explanations


METHODS = {"cam": GradCAM(), "++": GradCAMPlusPlus(), "grad": InputGradient()}


@every()
def test_methods_explain_in_inference_mode_and_leave_the_model_as_it_was(case: Case) -> None:
    """With the layer found and named: finite maps at image size, as outside of inference mode."""
    model, images = case.model_and_images()
    methods = METHODS | {"named": GradCAM(case.automatic)}
    expected = explain(model, images, attributions=methods)
    model.train()
    before = state_of(model)
    with torch.inference_mode():
        maps = explain(model, images.clone(), attributions=methods)
    assert_same_state(before, state_of(model))
    for name, values in maps.items():
        assert values.shape == (2, *case.size)
        assert values.isfinite().all()
        torch.testing.assert_close(values, expected[name])
    assert torch.equal(maps["named"], maps["cam"])


def test_guided_gradients_refuse_transformers() -> None:
    """GELU is no rectifier."""
    model, images = CASES["timm ViT"].model_and_images()
    with pytest.raises(ValueError, match=r"expected at least 50% of the nonlinearities to be rectifiers"):
        explain(model, images, attributions=GuidedGradient())


def test_maps_of_transformers_can_be_differentiated() -> None:
    """The derivative of a map along a direction of the images, by differences in float64."""
    model, images = CASES["timm ViT"].model_and_images()
    model, images, method = model.double(), images.double().requires_grad_(), GradCAM("blocks.1.norm1", relu=False)
    direction, step = images.detach().flip(3), 1e-6
    maps = explain(model, images, 1, attributions=method, create_graph=True)
    (gradient,) = torch.autograd.grad(maps.square().sum(), images)
    after, before = (
        explain(model, images.detach() + sign * step * direction, 1, attributions=method).square().sum()
        for sign in (1, -1)
    )
    torch.testing.assert_close((gradient * direction).sum(), (after - before) / (2 * step), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_maps_are_no_feature_maps(fused: bool) -> None:
    """Written out, attention passes (N, heads, T, T) through a dropout layer, which comes after the first norm."""
    model = from_timm("vit_tiny_patch16_224", **VIT)()
    for block in model.blocks:
        block.attn.fused_attn = fused
    images = torch.randn(2, 3, 64, 64)
    maps = explain(model.eval(), images, 1, attributions={"found": GradCAM(), "named": GradCAM("blocks.1.norm1")})
    assert torch.equal(maps["found"], maps["named"])


def test_patches_after_is_right_for_a_case_written_out() -> None:
    """What the cases above are compared with."""
    assert patches_after(1, 2, 3)(torch.arange(7).view(1, 7, 1)).tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
