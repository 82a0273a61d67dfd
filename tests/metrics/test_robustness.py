"""Infidelity and max-sensitivity: linear models with answers on paper, loops, captum's numbers, the shared contract."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract
from support import random_images, small_net
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_xai.metrics.robustness import (
    Infidelity,
    MaxSensitivity,
    Perturbation,
    gaussian_perturbation,
    infidelity,
    max_sensitivity,
    square_perturbation,
)
from lightning_xai.noise import generators
from lightning_xai.scores import pre_softmax

N_SAMPLES = 7

each_perturbation = pytest.mark.parametrize(
    "perturbation", [gaussian_perturbation, partial(square_perturbation, side=3, baseline=0.5)], ids=["noise", "square"]
)


def batch_of(n: int, seed: int) -> Batch:
    """Random values for both metrics, one of them undefined where there are several."""
    values = torch.rand(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if n > 2:
        values[:, 1] = math.nan
    return {"infidelities": values[0], "sensitivities": values[1]}


def mean_of(keyword: str, batches: list[Batch]) -> float:
    """Mean of the values that exist."""
    values = [v for batch in batches for v in batch[keyword].tolist() if not math.isnan(v)]
    return math.fsum(values) / len(values)


class _Robustness(MetricContract):
    both: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]
    higher_is_better = False
    keyword: ClassVar[str]

    def reference(self, batches: list[Batch]) -> float:
        return mean_of(self.keyword, batches)

    def test_arguments_are_not_written_to(self) -> None:
        """The values are the caller's; NaN is not equal to itself."""
        for batch in self.batches:
            given = batch[self.keyword].clone()
            self.filled([{self.keyword: given}])
            torch.testing.assert_close(given, batch[self.keyword], rtol=0, atol=0, equal_nan=True)


class TestInfidelity(_Robustness):
    """The contract for Infidelity."""

    metric_class = Infidelity
    keyword = "infidelities"
    batches: ClassVar[list[Batch]] = [{"infidelities": batch["infidelities"]} for batch in _Robustness.both]


class TestMaxSensitivity(_Robustness):
    """The contract for MaxSensitivity."""

    metric_class = MaxSensitivity
    keyword = "sensitivities"
    batches: ClassVar[list[Batch]] = [{"sensitivities": batch["sensitivities"]} for batch in _Robustness.both]


def example(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images, attributions and targets of small_net, float64."""
    images = random_images(n, dtype=torch.float64)
    return images, images.flip(0) / 3, torch.arange(n) % 3


def drawn(perturbation: Perturbation, images: Tensor, seed: int = 0) -> list[list[Tensor]]:
    """The perturbations (C,H,W) of each image, in their order."""
    sources = generators(images, seed)
    return [
        [perturbation(image, generator) for _ in range(N_SAMPLES)]
        for image, generator in zip(images, sources, strict=True)
    ]


WEIGHTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def linear(images: Tensor) -> Tensor:
    """Two classes, each an inner product with the image."""
    return torch.einsum("nchw,kchw->nk", images, WEIGHTS)


class TestInfidelityFunction:
    """The formula."""

    @each_perturbation
    @pytest.mark.parametrize("n_samples", [1, 20])
    def test_gradient_of_a_linear_model_has_none(self, perturbation: Perturbation, n_samples: int) -> None:
        """Its account is exact whatever the perturbation."""
        images, targets = random_images(2, dtype=torch.float64), torch.tensor([0, 1])
        found = infidelity(
            linear, images, WEIGHTS, targets, perturbation=perturbation, n_samples=n_samples, score=pre_softmax
        )
        assert found.tolist() == pytest.approx([0, 0], abs=1e-20)

    def test_maps_stand_for_the_sum_over_channels(self) -> None:
        """Exact for grey perturbations, which are equal in all channels."""

        def grey(image: Tensor, generator: torch.Generator) -> Tensor:
            return gaussian_perturbation(image[:1], generator).expand_as(image)

        images, targets = random_images(2, dtype=torch.float64), torch.tensor([0, 1])
        found = infidelity(linear, images, WEIGHTS.sum(1), targets, perturbation=grey, score=pre_softmax)
        assert found.tolist() == pytest.approx([0, 0], abs=1e-20)

    @each_perturbation
    @pytest.mark.parametrize("normalize", [False, True])
    def test_values_equal_a_loop_over_images_and_samples(self, perturbation: Perturbation, normalize: bool) -> None:
        """Centred logits of a network, perturbations in the order in which they are drawn."""
        net, (images, attributions, targets) = small_net().double(), example()
        found = infidelity(
            net,
            images,
            attributions,
            targets,
            perturbation=perturbation,
            n_samples=N_SAMPLES,
            normalize=normalize,
        )
        for n, perturbations in enumerate(drawn(perturbation, images)):
            accounts, changes = [], []
            for change in perturbations:
                before, after = net(images[n : n + 1])[0], net((images[n] - change)[None])[0]
                score = [logits[targets[n]] - logits.mean() for logits in (before, after)]
                accounts.append((attributions[n] * change).sum().item())
                changes.append((score[0] - score[1]).item())
            factor = 1.0
            if normalize:
                factor = sum(a * c for a, c in zip(accounts, changes, strict=True)) / sum(a * a for a in accounts)
            errors = [(factor * a - c) ** 2 for a, c in zip(accounts, changes, strict=True)]
            assert found[n].item() == pytest.approx(sum(errors) / N_SAMPLES, rel=1e-9)

    def test_normalized_value_ignores_the_scale_and_sign_of_attributions(self) -> None:
        """The factor takes them away; without it they matter."""
        net, (images, attributions, targets) = small_net().double(), example()
        one, other = (
            infidelity(net, images, scale * attributions, targets, normalize=True, n_samples=N_SAMPLES)
            for scale in (1.0, -1e4)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
        plain = infidelity(net, images, attributions, targets, n_samples=N_SAMPLES)
        assert (one < plain).all()

    @pytest.mark.parametrize("normalize", [False, True])
    def test_attributions_of_zeros_get_the_mean_squared_change(self, normalize: bool) -> None:
        """A stated number, not 0/0."""
        images, targets = random_images(2, dtype=torch.float64), torch.tensor([0, 1])
        found = infidelity(
            linear,
            images,
            torch.zeros(2, 8, 8),
            targets,
            normalize=normalize,
            n_samples=N_SAMPLES,
            score=pre_softmax,
        )
        for n, perturbations in enumerate(drawn(gaussian_perturbation, images)):
            changes = [(WEIGHTS[n] * change).sum().item() ** 2 for change in perturbations]
            assert found[n].item() == pytest.approx(sum(changes) / N_SAMPLES, rel=1e-9)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_attributions_that_are_not_finite_have_none(self, value: float) -> None:
        """And the metric counts them."""
        images, attributions, targets = example()
        attributions[2, 0, 0, 0] = value
        metric = Infidelity(keep_values=True)
        metric.update(infidelity(small_net().double(), images, attributions, targets))
        assert metric.compute().isfinite()
        assert metric.n_undefined == 1
        assert metric.values.isnan().tolist() == [False, False, True, False]

    def test_one_forward_more_than_samples(self) -> None:
        """Captum repeats the unperturbed one."""
        sizes = []

        def counted(images: Tensor) -> Tensor:
            sizes.append(len(images))
            return torch.zeros(len(images), 3)

        infidelity(counted, *example(), n_samples=5)
        assert sizes == [4] * 6

    @pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 4, 4), (3, 8, 8)])
    def test_attributions_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        """No broadcasting."""
        images, _, targets = example()
        with pytest.raises(ValueError, match=r"`attributions` expected the shape of the images, \(4, 3, 8, 8\)"):
            infidelity(small_net(), images, torch.zeros(shape), targets)

    def test_targets_of_another_number_are_refused(self) -> None:
        """One class for each image."""
        images, attributions, targets = example()
        with pytest.raises(ValueError, match=r"`targets` expected one class for each image, \(4,\), got \(1,\)"):
            infidelity(small_net(), images, attributions, targets[:1])

    def test_no_samples_are_refused(self) -> None:
        """A mean of nothing."""
        with pytest.raises(ValueError, match="`n_samples` expected 1 or more, got 0"):
            infidelity(small_net(), *example(), n_samples=0)


class TestPerturbations:
    """What is subtracted."""

    def test_square_becomes_the_baseline(self) -> None:
        """All of it, nothing else, wherever it lies."""
        image, places = random_images(1)[0], set()
        for seed in range(60):
            change = square_perturbation(image, torch.Generator().manual_seed(seed), side=6, baseline=0.5)
            touched = change.ne(0).all(0)
            rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
            assert touched.sum() == 36
            assert (rows.max() - rows.min(), columns.max() - columns.min()) == (5, 5)
            torch.testing.assert_close((image - change)[:, touched], torch.full((3, 36), 0.5))
            places.add((rows.min().item(), columns.min().item()))
        assert places == {(i, j) for i in range(3) for j in range(3)}

    def test_square_larger_than_the_image_covers_it(self) -> None:
        """Cut to its sides."""
        change = square_perturbation(torch.ones(1, 2, 3), torch.Generator().manual_seed(0), side=9)
        assert change.tolist() == torch.ones(1, 2, 3).tolist()

    def test_noise_has_its_deviation(self) -> None:
        """To a few percent."""
        noise = gaussian_perturbation(torch.zeros(1, 64, 64), torch.Generator().manual_seed(0), std=3.0)
        assert noise.std().item() == pytest.approx(3.0, rel=0.05)


class TestMaxSensitivityFunction:
    """The formula."""

    def test_scaled_image_changes_as_the_image_does(self) -> None:
        """One pixel of 2 explained by 5 times itself: at most 0.1 / 2, reached nearly by a thousand samples."""
        found = max_sensitivity(
            lambda images: 5 * images[:, 0], torch.full((1, 1, 1, 1), 2.0), radius=0.1, n_samples=1000
        )
        assert 0.0495 < found.item() <= 0.05

    def test_map_that_ignores_the_image_does_not_change(self) -> None:
        """Which is the best value, and no sign of truth."""
        assert max_sensitivity(lambda images: torch.ones(4, 8, 8), random_images()).tolist() == [0.0] * 4

    def test_values_equal_a_loop_over_images_and_samples(self) -> None:
        """The largest of relative Euclidean distances."""
        images = random_images(dtype=torch.float64)
        found = max_sensitivity(torch.sin, images, radius=0.3, n_samples=N_SAMPLES)
        for n, generator in enumerate(generators(images, 0)):
            distances = []
            for _ in range(N_SAMPLES):
                noise = 0.3 * (2 * torch.rand(3, 8, 8, generator=generator).double() - 1)
                difference = (images[n] + noise).sin() - images[n].sin()
                distances.append(math.sqrt((difference**2).sum()) / math.sqrt((images[n].sin() ** 2).sum()))
            assert found[n].item() == pytest.approx(max(distances), rel=1e-6)

    def test_scale_of_maps_is_of_no_consequence(self) -> None:
        """The change is relative."""
        images = random_images(dtype=torch.float64)
        large, small = (max_sensitivity(lambda x, s=scale: s * x.sin(), images) for scale in (1e6, 1e-6))
        torch.testing.assert_close(large, small, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_maps_of_zeros_and_maps_that_are_not_finite_have_none(self, value: float) -> None:
        """And the metric counts them."""
        images = random_images()
        images[2] = value
        metric = MaxSensitivity(keep_values=True)
        metric.update(max_sensitivity(torch.relu if value else lambda images: images.relu() * (images > 1), images))
        metric.compute()
        assert metric.values.isnan().tolist() == [False, False, True, False]
        assert metric.n_undefined == 1

    def test_one_explanation_more_than_samples(self) -> None:
        """The unperturbed one is made once."""
        calls = []

        def counted(images: Tensor) -> Tensor:
            calls.append(len(images))
            return images

        max_sensitivity(counted, random_images(), n_samples=5)
        assert calls == [4] * 6

    @pytest.mark.parametrize(("radius", "n_samples"), [(0.0, 10), (0.1, 0)])
    def test_numbers_out_of_range_are_refused(self, radius: float, n_samples: int) -> None:
        """No ball, no sample."""
        with pytest.raises(ValueError, match="`n_samples` and `radius` expected 1 or more and a positive number"):
            max_sensitivity(torch.sin, random_images(), radius=radius, n_samples=n_samples)

    def test_explanations_of_another_number_are_refused(self) -> None:
        """One map for each image."""
        with pytest.raises(ValueError, match=r"`explain` expected to return maps \(4, ...\), got \(1, 3, 8, 8\)"):
            max_sensitivity(lambda images: images[:1], random_images())


def all_values(images: Tensor, attributions: Tensor, targets: Tensor) -> Tensor:
    """Both functions' values, (N,2)."""
    net = small_net().double()
    return torch.stack([infidelity(net, images, attributions, targets), max_sensitivity(torch.sin, images)], dim=1)


class TestBatches:
    """What an image is measured with is its own."""

    def test_batch_and_order_are_of_no_consequence(self) -> None:
        """Alone, reversed and together."""
        given = example()
        whole = all_values(*given)
        torch.testing.assert_close(all_values(*(tensor.flip(0) for tensor in given)).flip(0), whole, rtol=1e-9, atol=0)
        alone = [all_values(*(tensor[n : n + 1] for tensor in given)) for n in range(4)]
        torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-9, atol=0)

    def test_arguments_and_random_state_are_left_alone(self) -> None:
        """And no graph is kept."""
        given, state = example(), torch.get_rng_state()
        kept = [tensor.clone() for tensor in given]
        assert not all_values(*given).requires_grad
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


class TestMetrics:
    """Both classes."""

    def test_collection_equals_metrics_alone(self) -> None:
        """Also after a first batch on which both agree."""
        still = {"infidelities": torch.tensor([0.5]), "sensitivities": torch.tensor([0.5])}
        batches = [still, *_Robustness.both]
        collection = MetricCollection([Infidelity(), MaxSensitivity()])
        for batch in batches:
            collection.update(**batch)
        found = {name: value.item() for name, value in collection.compute().items()}
        expected = {"Infidelity": "infidelities", "MaxSensitivity": "sensitivities"}
        assert found == pytest.approx({name: mean_of(keyword, batches) for name, keyword in expected.items()})

    @pytest.mark.parametrize("metric", [Infidelity(), MaxSensitivity()], ids=lambda metric: type(metric).__name__)
    def test_values_of_another_shape_are_refused(self, metric: Infidelity | MaxSensitivity) -> None:
        """Captum's users may have (N,1)."""
        with pytest.raises(ValueError, match=r"expected one value for each image, \(N,\), got \(2, 1\)"):
            metric.update(torch.zeros(2, 1))


@pytest.mark.peers
class TestCaptum:
    """captum.metrics with the same perturbations."""

    @each_perturbation
    @pytest.mark.parametrize("normalize", [False, True])
    def test_infidelity_is_captums(self, perturbation: Perturbation, normalize: bool) -> None:
        """With raw logits, plain and normalised."""
        metrics = pytest.importorskip("captum.metrics")
        net, (images, attributions, targets) = small_net().double().requires_grad_(False), example()

        def perturb(repeated: Tensor) -> tuple[Tensor, Tensor]:
            change = torch.cat([torch.stack(changes) for changes in drawn(perturbation, images)])
            return change, repeated - change

        theirs = metrics.infidelity(
            net, perturb, images, attributions, target=targets, n_perturb_samples=N_SAMPLES, normalize=normalize
        )
        ours = infidelity(
            net,
            images,
            attributions,
            targets,
            perturbation=perturbation,
            n_samples=N_SAMPLES,
            normalize=normalize,
            score=pre_softmax,
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("explain", [torch.sin, lambda images: images.relu().sum(1)])
    def test_max_sensitivity_is_captums(self, explain: Callable[[Tensor], Tensor]) -> None:
        """For maps of any shape."""
        metrics = pytest.importorskip("captum.metrics")
        images = random_images(dtype=torch.float64)

        def perturb(repeated: Tensor, radius: float) -> Tensor:
            noise = [torch.rand(3, 8, 8, generator=g) for g in generators(images, 0) for _ in range(N_SAMPLES)]
            return repeated + radius * (2 * torch.stack(noise) - 1).double()

        def explained(inputs: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
            return (explain(inputs[0]),) if isinstance(inputs, tuple) else explain(inputs)

        theirs = metrics.sensitivity_max(explained, images, perturb, perturb_radius=0.1, n_perturb_samples=N_SAMPLES)
        ours = max_sensitivity(explain, images, radius=0.1, n_samples=N_SAMPLES)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
