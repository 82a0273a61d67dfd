"""What all class activation maps have in common."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import (
    CAM,
    AblationCAM,
    EigenCAM,
    FinerCAM,
    GradCAM,
    GradCAMPlus,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    RSIGradCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    unit_maximum,
)
from lightning_xai.attribution.rsi_cam import guided_units, signed_gradients
from lightning_xai.attribution.score_cam import increase_weights
from lightning_xai.scores import centered, log_softmax, post_softmax, pre_softmax

STANDARD = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
ONE_PASS = {
    "gradcam": GradCAM,
    "plus": GradCAMPlus,
    "plus plus": GradCAMPlusPlus,
    "hires": HiResCAM,
    "layercam": LayerCAM,
    "xgrad": XGradCAM,
    "guided": GuidedGradCAM,
}
SAMPLED = {
    "smooth": lambda *args, **changes: SmoothGradCAMPlusPlus(*args, **{"n_samples": 5} | changes),
    "rsi": lambda *args, **changes: RSIGradCAM(*args, **{"n_steps": 5} | STANDARD | changes),
    "rsi guided": lambda *args, **changes: RSIGradCAM(
        *args, **{"n_steps": 5, "gradients": signed_gradients, "units": guided_units} | STANDARD | changes
    ),
    "score": ScoreCAM,
    "ablation": AblationCAM,
    "score increase": lambda *args, **changes: ScoreCAM(*args, **{"weights": increase_weights} | changes),
}
SCORED = ONE_PASS | SAMPLED
WITHOUT_SCORE = {"cam": CAM, "eigen": EigenCAM, "finer": FinerCAM}
EVERY = WITHOUT_SCORE | SCORED
TARGETS = [0, 1, 2, 1]


def over(methods):
    """The decorator that runs a test for each of them."""
    return pytest.mark.parametrize("method", methods.values(), ids=list(methods))


class Pooled(nn.Module):
    """A network of which CAM is defined at ``act2``: two convolutions, global average pooling, a linear layer."""

    def __init__(self, activation=nn.ReLU, **options) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.act1, self.act2 = activation(**options), activation(**options)
        self.head = nn.Linear(8, 4)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5

    def forward(self, images):
        hidden = F.max_pool2d(self.act1(self.conv1(images)), 2)
        return self.head(self.act2(self.conv2(hidden)).mean((2, 3)))


class Shifted(nn.Module):
    """The same probabilities, with t(x) = 10 times the activations' sum added to all logits (Lerma and Lucas 2023)."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        kept = []
        hook = self.inner.act2.register_forward_hook(lambda module, args, output: kept.append(output))
        logits = self.inner(images)
        hook.remove()
        return logits + 10 * kept[0].sum((1, 2, 3))[:, None]


@over(SCORED)
@pytest.mark.parametrize("score", [centered, log_softmax, post_softmax])
def test_zero_sum_scores_do_not_see_a_shift_of_all_logits(method, score):
    """To rounding in float64."""
    model, images = Pooled().double().eval(), random_images(3, dtype=torch.float64)
    clean = explain(model, images, 1, attributions=method("act2", score, relu=False))
    shifted = explain(Shifted(model), images, 1, attributions=method("inner.act2", score, relu=False))
    assert clean.abs().max() > 0
    torch.testing.assert_close(shifted, clean, rtol=1e-8, atol=1e-10 * clean.abs().max().item())


@over(SCORED)
def test_the_raw_logit_sees_a_shift_of_all_logits(method):
    """Also where each map is divided by its largest magnitude."""
    model, images = Pooled().double().eval(), random_images(3, dtype=torch.float64)
    clean = explain(model, images, 1, attributions=method("act2", pre_softmax, relu=False))
    shifted = explain(Shifted(model), images, 1, attributions=method("inner.act2", pre_softmax, relu=False))
    moved = (unit_maximum(shifted) - unit_maximum(clean)).abs().amax((1, 2))
    assert moved.max() > 0.1


@over(EVERY)
def test_in_place_operations_after_the_layer_change_nothing(method):
    """The layer's output is what the layer gave, not what became of it."""
    maps = []
    for inplace in (False, True):
        model = Pooled(inplace=inplace).double().eval()
        layer = "act2" if method is CAM else "conv2"
        maps.append(explain(model, random_images(dtype=torch.float64), 1, attributions=method(layer, relu=False)))
    assert maps[0].abs().max() > 0
    assert torch.equal(*maps)


@over(EVERY)
def test_a_batch_gives_what_its_images_give_alone(method):
    """Also with several layers."""
    model, images = Pooled().double().eval(), random_images(4, dtype=torch.float64)
    attribution = method("act2" if method is CAM else ("act1", "act2"), relu=False)
    together = explain(model, images, TARGETS, attributions=attribution)
    for i in range(4):
        alone = explain(model, images[i : i + 1], TARGETS[i], attributions=attribution)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-13)


@over(SAMPLED)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_chunks_do_not_change_maps(method, batch_size):
    """Smaller than the batch, larger, and across the samples; for one layer and for two."""
    model, images = Pooled().double().eval(), random_images(4, dtype=torch.float64)
    for layer in ("act2", ("act1", "act2")):
        whole = explain(model, images, TARGETS, attributions=method(layer, relu=False))
        chunked = explain(model, images, TARGETS, attributions=method(layer, relu=False, batch_size=batch_size))
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-13)


@over(SCORED)
def test_several_layers_are_fused_by_the_mean_of_their_normalised_maps(method):
    """Each layer's map counts alike, whatever the size of its values; Guided Grad-CAM fuses before the product."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    both, first, second = (
        explain(model, images, 0, attributions=method(layer)) for layer in (("conv1", "conv2"), "conv1", model.conv2)
    )
    if method is GuidedGradCAM:
        both, first, second = (
            explain(model, images, 0, attributions=GradCAM(layer)) for layer in (("conv1", "conv2"), "conv1", "conv2")
        )
    expected = sum(one / one.abs().amax((1, 2), keepdim=True).clamp(min=1e-30) for one in (first, second)) / 2
    torch.testing.assert_close(both, expected)


@over(EVERY)
def test_no_layer_means_the_last_spatial_one(method):
    """The output of the last rectifier."""
    model, images = Pooled().eval(), random_images()
    assert torch.equal(
        explain(model, images, 1, attributions=method()), explain(model, images, 1, attributions=method("act2"))
    )


@over(EVERY)
def test_an_empty_sequence_of_layers_is_refused(method):
    """When the method is made, not when it runs."""
    with pytest.raises(ValueError, match=r"`layer` expected at least one layer, got an empty sequence\. Use None"):
        method([])


@over(SAMPLED)
def test_a_batch_size_below_one_is_refused(method):
    """When the method is made."""
    with pytest.raises(ValueError, match=r"`batch_size` expected 1 or more, or None for as many as .* got 0"):
        method(batch_size=0)


@over(EVERY)
@pytest.mark.parametrize("create_graph", [False, True])
def test_model_and_random_state_are_left_alone(method, create_graph):
    """Mode, gradients, hooks, statistics, the global random state; in training mode and with gradients waiting."""
    model = Pooled().train()
    model(random_images()).sum().backward()
    before = state_of(model)
    maps = explain(model, random_images(), 1, attributions=method("act2"), create_graph=create_graph)
    assert_same_state(before, state_of(model))
    assert maps.requires_grad is create_graph


@over(EVERY)
def test_maps_can_be_differentiated(method):
    """Derivatives with respect to every parameter and the image equal finite differences in one direction."""
    activation = nn.ReLU if method is GuidedGradCAM else nn.Softplus  # the guided rule wants rectifiers
    model, images = Pooled(activation).double().eval(), random_images(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    inputs = [images.requires_grad_(), *model.parameters()]
    directions = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in inputs]
    factors = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    # the noise of an image changes altogether where the image does
    options = {"noise_level": 0.0, "n_samples": 2} if method is SAMPLED["smooth"] else {}

    def total(step=0.0):
        for one, direction in zip(inputs, directions, strict=True):
            one.data += step * direction
        maps = explain(model, images, 1, attributions=method("act2", relu=False, **options), create_graph=True)
        for one, direction in zip(inputs, directions, strict=True):
            one.data -= step * direction
        return (maps * factors).sum()

    gradients = torch.autograd.grad(total(), inputs, allow_unused=True)
    found = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    no_head = method is EigenCAM  # else all but the head's bias
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[: -2 if no_head else -1])
    expected = (total(1e-6) - total(-1e-6)) / 2e-6
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@over(EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_maps_are_float32_or_better(method, dtype):
    """Sums are kept in float32 where the model is not."""
    images = random_images(2).to(dtype)
    maps = explain(Pooled().to(dtype).eval(), images, 0, attributions=method("act2", relu=False))
    assert maps.dtype == torch.promote_types(dtype, torch.float32)
    expected = explain(Pooled().eval(), images.float(), 0, attributions=method("act2", relu=False))
    assert torch.cosine_similarity(maps.flatten(1).float(), expected.flatten(1)).min() > 0.95


class Pulse(torch.autograd.Function):
    """Identity that counts passes, and images whose graph is alive."""

    @staticmethod
    def forward(ctx, hidden, counts):
        ctx.token = Token()
        counts["images"] += len(hidden)
        counts["passes"] += 1
        counts["alive"] += len(hidden)
        counts["most"] = max(counts["most"], counts["alive"])
        weakref.finalize(ctx.token, Pulse.end, counts, len(hidden))
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradients):
        return gradients, None

    @staticmethod
    def end(counts, n):
        counts["alive"] -= n


class Counted(nn.Module):
    """A module that counts what enters it."""

    def __init__(self, module, counts):
        super().__init__()
        self.module, self.counts = module, counts

    def forward(self, values):
        return self.module(Pulse.apply(values, self.counts))


class Token:
    """Lives as long as the graph that holds it."""


def counted(method, images):
    """What Pulse counts while a method runs, without garbage collection."""
    counts = {"images": 0, "passes": 0, "alive": 0, "most": 0}
    model = Pooled().eval()
    model.act2 = Counted(model.act2, counts)
    gc.disable()
    try:
        explain(model, images, 1, attributions=method)
    finally:
        gc.enable()
    return counts


@over(WITHOUT_SCORE | ONE_PASS)
def test_one_forward_pass_is_enough(method):
    """For all but the sampled methods, and for several layers."""
    layer = "act2" if method is CAM else ("conv2", "act2")
    assert counted(method(layer), random_images())["passes"] == 1


@over({name: SAMPLED[name] for name in ("smooth", "rsi", "rsi guided")})
@pytest.mark.parametrize("layer", ["conv2", ("conv1", "conv2")])
@pytest.mark.parametrize(("batch_size", "passes", "most"), [(2, 10, 6), (None, 5, 8), (8, 3, 12)])
def test_passes_are_counted_and_their_graphs_forgotten(method, layer, batch_size, passes, most):
    """Five samples of four images: no graph but the trace's and that of one chunk, whatever the number of layers."""
    counts = counted(method(layer, batch_size=batch_size), random_images(4))
    assert counts["passes"] == 1 + passes
    assert counts["images"] == 4 + 20
    assert counts["most"] == most
    assert counts["alive"] == 0
