"""SmoothGrad and Integrated Gradients against references from the papers, and what chunks may not change."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import InputGradient, explain
from lightning_xai.attribution import DeepLIFT, IntegratedGradients, RSIGradCAM, ScoreCAM, SmoothGrad
from lightning_xai.attribution.gradient import channel_max
from lightning_xai.attribution.paths import completeness_error, gauss_legendre, trapezoid
from lightning_xai.baselines import black, blurred
from lightning_xai.explain import capture_for
from lightning_xai.noise import generators, noisy_copies
from lightning_xai.scores import post_softmax, pre_softmax
from lightning_xai.trace import run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
ZERO = torch.tensor(0.0)
TARGETS = [0, 1, 2, 1]
METHODS = {
    "smooth": lambda **changes: SmoothGrad(**{"n_samples": 5} | changes),
    "gauss": lambda **changes: IntegratedGradients(mean=MEAN, std=STD, **{"n_steps": 5} | changes),
    "trapezoid": lambda **changes: IntegratedGradients(mean=MEAN, std=STD, rule=trapezoid, **{"n_steps": 5} | changes),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def smooth_net():
    """A network with a smooth score, so that quadrature converges fast."""
    weights = torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 5
    layers = nn.Linear(48, 48).double(), nn.Linear(48, 3).double()
    layers[0].weight.data, layers[1].weight.data = weights[0], weights[1, :3]
    return nn.Sequential(nn.Flatten(), layers[0], nn.Tanh(), layers[1])


def probability_gradient(model, image, target):
    """The gradient of one image's softmax probability, by autograd in plain sight."""
    return torch.autograd.functional.jacobian(lambda x: model(x[None]).softmax(1)[0, target], image)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_gauss_legendre_equals_numpy(n):
    """Nodes and weights on [-1, 1], moved to [0, 1]."""
    nodes, weights = gauss_legendre(n)
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(n)
    torch.testing.assert_close(nodes, torch.from_numpy((expected_nodes + 1) / 2), rtol=0, atol=1e-13)
    torch.testing.assert_close(weights, torch.from_numpy(expected_weights / 2), rtol=0, atol=1e-13)


def test_gauss_legendre_is_exact_for_polynomials():
    """Degree 2n - 1, and no further."""
    nodes, weights = gauss_legendre(3)
    for degree, exact in ((0, True), (4, True), (5, True), (6, False)):
        error = abs((weights * nodes**degree).sum().item() - 1 / (degree + 1))
        assert (error < 1e-14) is exact, degree


@pytest.mark.parametrize("rule", [trapezoid, gauss_legendre])
def test_integrated_gradients_equal_the_paper(rule):
    """Eq. 1 for each image, step and pixel, in float64, from the black image."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    method = IntegratedGradients(n_steps=4, rule=rule, mean=MEAN, std=STD)
    found = explain(model, images, TARGETS[:3], attributions=method)
    start = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], dtype=torch.float64)[:, None, None]
    for image, target, one in zip(images, TARGETS, found, strict=False):
        expected = torch.zeros(8, 8, dtype=torch.float64)
        for position, weight in zip(*rule(4), strict=True):
            gradient = probability_gradient(model, start + position * (image - start), target)
            expected += weight * ((image - start) * gradient).sum(0)
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-14)


def test_one_step_of_gauss_legendre_is_the_gradient_half_way_times_the_difference():
    """The midpoint rule."""
    model, images = small_net().double(), random_images(2, dtype=torch.float64)
    found = explain(model, images, TARGETS[:2], attributions=IntegratedGradients(n_steps=1, baseline=ZERO))
    half_way = [probability_gradient(model, image / 2, t) for image, t in zip(images, TARGETS, strict=False)]
    torch.testing.assert_close(found, (torch.stack(half_way) * images).sum(1), rtol=1e-9, atol=1e-14)


def test_one_step_of_the_trapezoid_is_the_mean_of_both_ends():
    """The gradient at the image is that of the trace itself."""
    model, images = small_net().double(), random_images(2, dtype=torch.float64)
    method = IntegratedGradients(n_steps=1, rule=trapezoid, baseline=ZERO)
    found = explain(model, images, TARGETS[:2], attributions=method)
    ends = [
        (probability_gradient(model, image, t) + probability_gradient(model, 0 * image, t)) / 2
        for image, t in zip(images, TARGETS, strict=False)
    ]
    torch.testing.assert_close(found, (torch.stack(ends) * images).sum(1), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("rule", [trapezoid, gauss_legendre])
def test_integrated_gradients_of_a_linear_model_are_exact(rule):
    """Weight times difference, whatever the number of steps."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2).double())
    images = random_images(2, size=2, channels=1, dtype=torch.float64)
    method = IntegratedGradients(pre_softmax, 3, rule, baseline=torch.tensor(2.0))
    found = explain(model, images, 1, attributions=method)
    expected = model[1].weight[1].view(2, 2) * (images[:, 0] - 2)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("rule", "bound"), [(trapezoid, 2e-4), (gauss_legendre, 1e-7)])
def test_maps_sum_to_the_difference_of_scores(rule, bound):
    """Proposition 1; the error reported is that of the steps, and it is the one left."""
    model, images = smooth_net(), random_images(4, size=4, dtype=torch.float64)
    method = IntegratedGradients(n_steps=30, rule=rule, mean=MEAN, std=STD)
    targets = torch.tensor(TARGETS)
    maps, error = method.maps_and_error(run(model, images, capture_for(model, [method])), targets)
    assert torch.equal(maps, explain(model, images, TARGETS, attributions=method))
    baseline = black(images, MEAN, STD).expand_as(images)
    with torch.no_grad():
        ends = [model(x).softmax(1).gather(1, targets[:, None])[:, 0] for x in (images, baseline)]
    torch.testing.assert_close(error, maps.sum((1, 2)) - (ends[0] - ends[1]), rtol=0, atol=1e-14)
    assert (ends[0] - ends[1]).abs().min() > 100 * bound
    assert 0 < error.abs().max() < bound


def test_completeness_error_is_signed():
    """Positive where the map claims too much."""
    error = completeness_error(torch.ones(2, 1, 3), torch.tensor([4.0, 1.0]), torch.tensor([0.0, -1.0]))
    assert error.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "f", [lambda a, b: F.relu(F.relu(a) - 1 - F.relu(b)), lambda a, b: F.relu(F.relu(a - 1) - F.relu(b))]
)
def test_integrated_gradients_give_the_papers_known_answer(f):
    """Appendix B, and captum's test of it: two networks that compute the same get 1.5 and -0.5 at (3, 1)."""

    class Net(nn.Module):
        def forward(self, images):
            return f(*images.flatten(1).split(1, dim=1))

    method = IntegratedGradients(score=pre_softmax, n_steps=2, baseline=ZERO)
    found = explain(Net(), torch.tensor([[[[3.0, 1.0]]]]), 1, attributions=method)
    torch.testing.assert_close(found, torch.tensor([[[1.5, -0.5]]]))


def test_a_baseline_may_be_a_function_of_the_images():
    """Such as the blurred image, one for each."""
    model, images = small_net(), random_images(3)
    found = explain(model, images, attributions=IntegratedGradients(n_steps=2, baseline=blurred, mean=MEAN, std=STD))
    given = IntegratedGradients(n_steps=2, baseline=blurred(images, MEAN, STD))
    assert torch.equal(found, explain(model, images, attributions=given))
    assert not torch.allclose(found, explain(model, images, attributions=METHODS["gauss"](n_steps=2)))


def test_smoothgrad_equals_the_paper():
    """The mean over noisy copies, with noise of a share of each image's own range, in float64."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    images[1] *= 5
    method = SmoothGrad(score=post_softmax, n_samples=4, noise_level=0.2, seed=7)
    found = explain(model, images, TARGETS[:3], attributions=method)
    for image, target, one in zip(images, TARGETS, found, strict=False):
        source, expected = generators(image[None], 7)[0], torch.zeros(3, 8, 8, dtype=torch.float64)
        for _ in range(4):
            noise = torch.randn(3, 8, 8, generator=source).double() * 0.2 * (image.max() - image.min())
            expected += probability_gradient(model, image + noise, target) / 4
        torch.testing.assert_close(one, expected.sum(0), rtol=1e-9, atol=1e-14)


def test_smoothgrad_without_noise_is_the_gradient():
    """And so it is for a constant image, whose range is zero."""
    model, images = small_net(), random_images(2)
    expected = explain(model, images, 1, attributions=InputGradient())
    torch.testing.assert_close(explain(model, images, 1, attributions=SmoothGrad(noise_level=0.0)), expected)
    constant = torch.full((1, 3, 8, 8), 0.5)
    expected = explain(model, constant, 1, attributions=InputGradient())
    torch.testing.assert_close(explain(model, constant, 1, attributions=SmoothGrad()), expected)


def test_smoothgrad_reduces_the_mean_and_not_each_sample():
    """The largest magnitude over channels of the mean gradient."""
    model, images = smooth_net().float(), random_images(1, size=4)
    gradients = [
        torch.autograd.functional.jacobian(lambda x: model(x)[0, 1] - model(x).mean(), noisy[None])
        for noisy in noisy_copies(images, 0.15, seed=0)(torch.zeros(3).long())
    ]
    found = explain(model, images, 1, attributions=SmoothGrad(n_samples=3, reduce=channel_max))
    torch.testing.assert_close(found, torch.stack(gradients).mean(0).abs().amax(1), rtol=1e-4, atol=1e-6)


def test_smoothgrad_depends_on_the_seed_and_leaves_the_random_state_alone():
    """The same seed gives the same map, whatever the global state."""
    model, images = small_net(), random_images(2)
    before, maps = state_of(model), []
    for seed in (0, 0, 1):
        maps.append(explain(model, images, attributions=SmoothGrad(n_samples=2, seed=seed)))
        assert_same_state(before, state_of(model))
        torch.rand(1)
        before["random state"] = torch.get_rng_state()
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


@each_method
@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_chunks_do_not_change_maps(method, batch_size):
    """Smaller than the batch, larger, and across the steps."""
    model, images = small_net().double(), random_images(4, dtype=torch.float64)
    whole = explain(model, images, TARGETS, attributions=method())
    chunked = explain(model, images, TARGETS, attributions=method(batch_size=batch_size))
    torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-14)


@each_method
def test_a_batch_gives_what_its_images_give_alone(method):
    """Noise, baseline and target of each image are its own."""
    model, images = small_net().double(), random_images(4, dtype=torch.float64)
    together = explain(model, images, TARGETS, attributions=method(batch_size=3))
    for i in range(4):
        alone = explain(model, images[i : i + 1], TARGETS[i], attributions=method())
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-14)


class Pulse(torch.autograd.Function):
    """Identity that counts passes, and images whose graph is alive."""

    @staticmethod
    def forward(ctx, images, counts):
        ctx.counts, ctx.token = counts, Token()
        counts["forward"] += 1
        counts["alive"] += len(images)
        counts["most"] = max(counts["most"], counts["alive"])
        weakref.finalize(ctx.token, Pulse.end, counts, len(images))
        return images.clone()

    @staticmethod
    def backward(ctx, gradients):
        ctx.counts["backward"] += 1
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


@pytest.mark.parametrize(
    ("name", "batch_size", "passes", "most"),
    [("smooth", 2, 10, 6), ("smooth", None, 5, 8), ("gauss", 2, 10, 6), ("trapezoid", None, 5, 8)],
)
def test_passes_are_counted_and_their_graphs_forgotten(name, batch_size, passes, most):
    """Five samples of four images: no graph but the trace's and that of one chunk, also without garbage collection."""
    counts = {"forward": 0, "backward": 0, "alive": 0, "most": 0}
    model, images = small_net(), random_images(4)
    model.conv1 = Counted(model.conv1, counts)
    gc.disable()
    try:
        explain(model, images, attributions=METHODS[name](batch_size=batch_size))
    finally:
        gc.enable()
    assert counts["forward"] == 1 + passes
    assert counts["backward"] == passes + (name == "trapezoid")
    assert counts["most"] == most
    assert counts["alive"] == 0


@each_method
def test_maps_can_be_differentiated(method):
    """The derivative of a map with respect to a parameter, and to the image, equals finite differences."""
    model, images = smooth_net(), random_images(2, size=4, dtype=torch.float64).requires_grad_()
    method = method(score=post_softmax, n_steps=3) if method is not METHODS["smooth"] else method(noise_level=0.0)
    weight = model[3].weight

    def total(change=0.0, shift=0.0):
        weight.data[0, 0] += change
        maps = explain(model, images + shift * direction, 0, attributions=method, create_graph=True)
        weight.data[0, 0] -= change
        return (maps * factors).sum()

    direction, factors = random_images(4, size=4, dtype=torch.float64)[2:], torch.arange(16.0).view(4, 4)
    by_weight, by_image = torch.autograd.grad(total(), [weight, images])
    step = 1e-5
    assert by_weight[0, 0].item() == pytest.approx((total(step) - total(-step)).item() / (2 * step), rel=1e-5)
    along = (total(0.0, step) - total(0.0, -step)).item() / (2 * step)
    assert (by_image * direction).sum().item() == pytest.approx(along, rel=1e-5)


@pytest.mark.parametrize("rule", [trapezoid, gauss_legendre])
def test_the_path_is_not_rounded_to_the_images_dtype(rule):
    """In bfloat16 the share 0.51 would be 0.5078: rounded is what the model is given, and nothing else."""
    seen, images, baseline = [], torch.full((1, 1, 1, 2), 1000.0), torch.tensor(1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).bfloat16()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, 0, 0, 0].item()))
    method = IntegratedGradients(pre_softmax, 7, rule, baseline=baseline)
    maps = explain(model, images.bfloat16(), 1, attributions=method)
    path = torch.lerp(baseline.double(), images.bfloat16().flatten()[0].double(), rule(7)[0]).bfloat16().tolist()
    assert seen == path
    expected = model[1].weight.detach().float() * (images.bfloat16().float() - baseline).flatten()
    torch.testing.assert_close(maps.flatten(), expected.flatten(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@each_method
def test_maps_are_float32_or_better(method, dtype):
    """Sums are kept in float32 where the model is not."""
    images = random_images(2).to(dtype)
    maps = explain(small_net().to(dtype), images, 0, attributions=method())
    assert maps.dtype == torch.promote_types(dtype, torch.float32)
    expected = explain(small_net(), images.float(), 0, attributions=method())  # noise depends on the rounded images
    assert torch.cosine_similarity(maps.flatten(1).float(), expected.flatten(1)).min() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothGrad(n_samples=0), "`n_samples` expected 1 or more, got 0"),
        (lambda: SmoothGrad(noise_level=-0.1), "`noise_level` expected a share of the image's range.*got -0.1"),
        (lambda: SmoothGrad(batch_size=0), "`batch_size` expected 1 or more, or None.*got 0"),
        (lambda: IntegratedGradients(n_steps=0, baseline=ZERO), "`n_steps` expected 1 or more, got 0"),
        (lambda: IntegratedGradients(baseline=ZERO, batch_size=-1), "`batch_size` expected 1 or more"),
        (lambda: IntegratedGradients(baseline=black), "`mean` and `std` expected.*pass a tensor as `baseline`"),
        (lambda: IntegratedGradients(mean=MEAN), "`mean` and `std` expected"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    """When the method is made, not when it runs."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [IntegratedGradients, RSIGradCAM, ScoreCAM, DeepLIFT])
def test_a_baseline_that_is_a_number_is_refused(method):
    """What to write instead is said."""
    with pytest.raises(TypeError, match=r"`baseline` expected a tensor or a function.*got float.*torch.tensor\(value"):
        method(baseline=0.0, mean=MEAN, std=STD)


@pytest.mark.parametrize("method", [IntegratedGradients, RSIGradCAM, DeepLIFT])
def test_without_mean_and_std_the_baseline_is_zero_and_black_with_them(method):
    """As `IntegratedGradients()` is shown; in other packages it is zero, too."""
    model, images = small_net(), random_images()
    found = explain(model, images, attributions={"bare": method(), "told": method(mean=MEAN, std=STD)})
    given = {"bare": method(baseline=ZERO), "told": method(baseline=black, mean=MEAN, std=STD)}
    expected = explain(model, images, attributions=given)
    assert torch.equal(found["bare"], expected["bare"])
    assert torch.equal(found["told"], expected["told"])
    assert not torch.allclose(found["bare"], found["told"])


def test_a_baseline_of_another_shape_is_refused():
    """With both shapes."""
    method = IntegratedGradients(baseline=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`baseline` expected.*\(4, 3, 8, 8\), got \(2, 3\)"):
        explain(small_net(), random_images(), attributions=method)
