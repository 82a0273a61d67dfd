"""Sanity checks: similarities by slow formulas, randomised copies by hand, guided gradients that fail, the contract."""

import copy
import math
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from metrics.contract import Batch, MetricContract
from support import assert_same_state, random_images, small_net, state_of
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_xai import GradCAM, GuidedGradient, InputGradient, explain
from lightning_xai.attribution import Attribution
from lightning_xai.metrics import (
    ClassSensitivity,
    ParameterRandomization,
    class_sensitivity,
    map_similarities,
    parameter_randomization,
    random_other_targets,
    randomizable_layers,
)
from lightning_xai.metrics.similarity import SIMILARITIES
from lightning_xai.scores import second_best

LAYERS = ["head", "bn2", "conv2", "bn1", "conv1"]


def similarities_of(seed: int, *shape: int) -> Tensor:
    """Random similarities, an image or layer in some of which there is none."""
    values = 2 * torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    if shape[0] > 2:
        values[1] = math.nan
        values.view(-1, 3)[-1] = math.nan
    return values


def mean(values: list[float]) -> float:
    """Of the numbers that are there."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


class _Sanity(MetricContract):
    higher_is_better = False

    def test_arguments_are_not_written_to(self) -> None:
        """The similarities are the caller's; NaN is not equal to itself."""
        for batch in self.batches:
            given = copy.deepcopy(batch)
            self.filled([given])
            for name, values in batch.items():
                torch.testing.assert_close(given[name], values, rtol=0, atol=0, equal_nan=True)


class TestClassSensitivity(_Sanity):
    """The contract for ClassSensitivity."""

    metric_class = ClassSensitivity
    batches: ClassVar[list[Batch]] = [{"class_similarities": similarities_of(n, n)} for n in (5, 1, 3)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        """Means over the images that have similarities."""
        rows = [row for batch in batches for row in batch["class_similarities"].tolist()]
        return {f"class_{name}": mean([row[i] for row in rows]) for i, name in enumerate(SIMILARITIES)}


class OfThreeLayers(ParameterRandomization):
    """For the contract, which creates metrics without arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["top", "middle", "bottom"], **kwargs)


class TestParameterRandomization(_Sanity):
    """The contract for ParameterRandomization."""

    metric_class = OfThreeLayers
    batches: ClassVar[list[Batch]] = [{"randomization_similarities": similarities_of(n, n, 3)} for n in (5, 1, 3)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        """Means over images of the means over their layers."""
        images = [image for batch in batches for image in batch["randomization_similarities"].tolist()]
        return {
            f"randomization_{name}": mean([mean([layer[i] for layer in layers]) for layers in images])
            for i, name in enumerate(SIMILARITIES)
        }


def slow_rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation with mean ranks of ties, by counting."""
    ranks = []
    for values in (first.flatten().tolist(), second.flatten().tolist()):
        ranks.append([sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values])
    centred = [[rank - sum(r) / len(r) for rank in r] for r in ranks]
    product, *squares = (
        sum(a * b for a, b in zip(*pair, strict=True))
        for pair in (centred, (centred[0], centred[0]), (centred[1], centred[1]))
    )
    return product / math.sqrt(squares[0] * squares[1])


def slow_ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of two maps (H,W) in [0, 1] with reflected borders, window by window."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window[:, None] * window / window.sum() ** 2
    padded = [F.pad(values[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for values in (first, second)]
    values = []
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            x, y = (values[i : i + 11, j : j + 11] for values in padded)
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, cov = (
                (window * a * b).sum() - m for a, b, m in ((x, x, mx * mx), (y, y, my * my), (x, y, mx * my))
            )
            luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
            values.append(luminance * (2 * cov + 0.03**2) / (vx + vy + 0.03**2))
    return (sum(values) / len(values)).item()


def two_maps(n: int = 3, size: int = 9) -> tuple[Tensor, Tensor]:
    """Signed maps (n,size,size) that have something in common."""
    first, noise = random_images(2 * n, size, 1, torch.float64)[:, 0].chunk(2)
    return first, first + noise


class TestSimilarities:
    """Of two maps."""

    def test_memory_does_not_grow_with_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One pair at a time: 88 pairs of 224 pixels at once took more than 20 GB."""
        sizes = []

        def counted(first: Tensor, second: Tensor, **options: Any) -> Any:
            sizes.append(len(first))
            return structural_similarity_index_measure(first, second, **options)

        monkeypatch.setattr("lightning_xai.metrics.similarity.structural_similarity_index_measure", counted)
        assert map_similarities(*two_maps(5)).shape == (5, 3)
        assert sizes == [1] * 5

    @pytest.mark.parametrize("rectified", [False, True])
    def test_similarities_equal_the_slow_formulas(self, rectified: bool) -> None:
        """Signed maps, and rectified ones whose zeros are tied."""
        first, second = (maps.relu() if rectified else maps for maps in two_maps())
        for n, row in enumerate(map_similarities(first, second).tolist()):
            magnitudes = first[n].abs(), second[n].abs()
            expected = [
                slow_rank_correlation(first[n], second[n]),
                slow_rank_correlation(*magnitudes),
                slow_ssim(*(values / values.max() for values in magnitudes)),
            ]
            assert row == pytest.approx(expected, rel=1e-5)

    def test_ties_of_a_large_map_are_counted_in_full(self) -> None:
        """Two thirds of 400 x 400 pixels are zero: the sum of their ranks needs more than 32 bits."""
        ramp = torch.arange(400.0 * 400).view(1, 400, 400)
        first, second = (ramp - 100_000).relu(), (ramp - 120_000).relu()
        zeros = [float((maps == 0).sum()) for maps in (first, second)]
        pixels = 160_000.0

        def spread(zeros: float) -> float:
            """Sum of squared centred ranks: all distinct, less what the tie takes."""
            return (pixels**3 - pixels) / 12 - (zeros**3 - zeros) / 12

        # Beyond the larger tie the ranks agree; inside it one map's ranks are centred about the other's constant.
        expected = spread(zeros[1]) / math.sqrt(spread(zeros[0]) * spread(zeros[1]))
        assert map_similarities(first, second)[0, 0].item() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("sign", "expected"), [(1.0, [1, 1, 1]), (-1.0, [-1, 1, 1])])
    def test_equal_and_inverted_maps_reach_the_ends(self, sign: float, expected: list[float]) -> None:
        """Whatever their scale."""
        maps, _ = two_maps(1)
        assert map_similarities(maps, 1e-5 * sign * maps)[0].tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("value", [0.0, 2.5, math.nan, math.inf])
    def test_maps_without_features_have_no_similarity(self, value: float) -> None:
        """On either side; the other images are not touched."""
        first, second = two_maps()
        spoilt = second.clone()
        spoilt[1] = value
        clean = map_similarities(first, second)
        for found in (map_similarities(first, spoilt), map_similarities(spoilt, first)):
            assert found.isnan().all(1).tolist() == [False, True, False]
            torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])

    def test_magnitude_that_is_constant_has_no_rank_correlation(self) -> None:
        """Plus and minus one: the signs have an order, the magnitudes none."""
        first, second = two_maps(1)
        found = map_similarities(first.sign(), second)[0]
        assert found.isnan().tolist() == [False, True, False]

    def test_batch_is_of_no_consequence(self) -> None:
        """SSIM's range is each map's own."""
        first, second = two_maps()
        alone = [map_similarities(first[n : n + 1], 10.0**n * second[n : n + 1]) for n in range(3)]
        torch.testing.assert_close(torch.cat(alone), map_similarities(first, second), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("shapes", [((2, 8, 8), (1, 8, 8)), ((2, 5, 8), (2, 5, 8)), ((2, 1, 8, 8), (2, 1, 8, 8))])
    def test_maps_of_other_shapes_are_refused(self, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        """Too small for the window, not as many, or with channels."""
        with pytest.raises(ValueError, match=r"one shape \(N,H,W\) with sides of 6 pixels or more"):
            map_similarities(*map(torch.rand, shapes))


class Owner(nn.Module):
    """A module with parameters of its own, no reset, and a child."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(3.0 + 2.0 * torch.randn(1000))
        self.scale = nn.Parameter(torch.full((4,), 7.0))
        self.child = nn.Linear(4, 4)


def noted(record: dict[str, list[Tensor]], model: nn.Module) -> Tensor:
    """Notes all parameters and statistics of a model, and gives some maps."""
    for name, values in model.state_dict().items():
        record.setdefault(name, []).append(values.clone())
    return random_images(2, channels=1)[:, 0]


def changed_layers(model: nn.Module, **options: Any) -> list[set[str]]:
    """Modules whose parameters or statistics differ from the model's own at each step."""
    record: dict[str, list[Tensor]] = {}
    parameter_randomization(model, lambda copied: noted(record, copied), **options)
    steps = range(1, len(next(iter(record.values()))))
    return [{name.rpartition(".")[0] for name, v in record.items() if not torch.equal(v[i], v[0])} for i in steps]


class TestRandomization:
    """Which copies are explained."""

    def test_default_layers_are_those_with_parameters_from_the_top(self) -> None:
        """Last registered first."""
        assert randomizable_layers(small_net()) == LAYERS

    def test_cascade_adds_one_layer_after_the_other(self) -> None:
        """From the top to all of them."""
        changed = changed_layers(small_net())
        assert changed == [set(LAYERS[: i + 1]) for i in range(5)]

    def test_independent_randomization_touches_one_layer_at_a_time(self) -> None:
        """The others are the model's own again."""
        assert changed_layers(small_net(), independent=True) == [{layer} for layer in LAYERS]

    def test_given_layers_stand_for_all_inside(self) -> None:
        """In the order given; a name that begins alike is another one."""
        model = nn.Sequential()
        for name in ("stem", "layer1", "layer10"):
            model.add_module(name, nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)))
        first, second = {"layer1.0", "layer1.2"}, {"stem.0", "stem.2"}
        assert changed_layers(model, layers=["layer1", "stem"]) == [first, first | second]

    def test_layer_is_the_same_in_every_order(self) -> None:
        """Cascading or alone, its seed is its own; another seed gives other values."""
        model, records = small_net(), []
        for options in ({}, {"independent": True}, {"layers": ["conv1"]}, {"seed": 1}):
            record: dict[str, list[Tensor]] = {}
            parameter_randomization(model, lambda copied, r=record: noted(r, copied), **options)
            records.append(record["conv1.weight"][-1])
        assert torch.equal(records[0], records[1])
        assert torch.equal(records[0], records[2])
        assert not torch.equal(records[0], records[3])

    def test_batch_normalisation_forgets_its_statistics(self) -> None:
        """They belong to the training as weights do."""
        found = []

        def statistics(model: nn.Module) -> Tensor:
            found.append((model.bn1.running_mean.clone(), model.bn1.running_var.clone()))
            return random_images(2, channels=1)[:, 0]

        parameter_randomization(small_net(), statistics, layers=["bn1"])
        assert not torch.equal(*found[0])
        assert found[1][0].eq(0).all()
        assert found[1][1].eq(1).all()

    def test_a_model_that_keeps_a_tensor_of_its_pass_is_copied(self) -> None:
        """Which torch refuses to copy where it has a graph."""
        model = small_net()
        model.kept = model(random_images(2))
        found = parameter_randomization(model, lambda copied: random_images(2, channels=1)[:, 0], layers=["bn1"])
        assert found.layers == ["bn1"]
        assert model.kept.requires_grad

    def test_parameters_without_reset_keep_mean_and_deviation(self) -> None:
        """Drawn anew; constants stay, and the child is a layer of its own."""
        torch.manual_seed(0)
        model, record = Owner(), {}
        assert randomizable_layers(model) == ["child", ""]
        parameter_randomization(model, lambda copied: noted(record, copied), independent=True)
        before, _, after = record["token"]
        assert not torch.equal(before, after)
        assert (after.mean().item(), after.std().item()) == pytest.approx((3.0, 2.0), abs=0.3)
        assert torch.equal(record["scale"][2], record["scale"][0])
        assert torch.equal(record["child.weight"][2], record["child.weight"][0])

    @pytest.mark.parametrize("careless", [False, True])
    def test_model_and_process_are_as_before(self, careless: bool) -> None:
        """Whatever the explanation does to the model it is given, or when it raises."""
        model = small_net().train()
        before = state_of(model)

        def explained(copied: nn.Module) -> Tensor:
            if careless:
                copied.eval()
                copied(random_images()).sum().backward()
                copied.conv1.weight.data.zero_()
                raise ArithmeticError("midway")
            return random_images(2, channels=1)[:, 0]

        if careless:
            with pytest.raises(ArithmeticError):
                parameter_randomization(model, explained)
        else:
            parameter_randomization(model, explained)
        assert_same_state(before, state_of(model))

    def test_map_that_ignores_the_model_fails_entirely(self) -> None:
        """Ones for every layer, in the worst case."""
        result = parameter_randomization(small_net(), lambda model: random_images(2, channels=1)[:, 0])
        assert result.layers == LAYERS
        torch.testing.assert_close(result.randomization_similarities, torch.ones(2, 5, 3, dtype=torch.float64))

    def test_similarities_are_those_of_the_maps(self) -> None:
        """Between the model's own and each randomised one."""
        found = []

        def explained(model: nn.Module) -> Tensor:
            found.append(explain(model, random_images(), 0, attributions=InputGradient()))
            return found[-1]

        result = parameter_randomization(small_net(), explained)
        for i in range(5):
            expected = map_similarities(found[0], found[i + 1])
            torch.testing.assert_close(result.randomization_similarities[:, i], expected, equal_nan=True)

    @pytest.mark.parametrize("layer", ["conv3", "relu", "conv"])
    def test_layers_without_parameters_are_refused(self, layer: str) -> None:
        """Nothing would change, and every method fail."""
        with pytest.raises(ValueError, match=rf"`layers` expected .*got '{layer}'. There are \['head', 'bn2'"):
            parameter_randomization(small_net(), lambda model: torch.rand(1, 8, 8), layers=[layer])


class TestOtherClasses:
    """Which classes are compared."""

    def test_random_class_is_another_and_any_other(self) -> None:
        """Each of the others comes up."""
        images, targets = random_images(64), torch.arange(64) % 4
        others = random_other_targets(images, targets, 4)
        assert (others != targets).all()
        assert {((o - t) % 4).item() for o, t in zip(others, targets, strict=True)} == {1, 2, 3}
        assert not torch.equal(random_other_targets(images, targets, 4, seed=1), others)

    def test_random_class_is_that_of_the_image(self) -> None:
        """Batch and order do not matter."""
        images, targets = random_images(8), torch.zeros(8, dtype=torch.long)
        others = random_other_targets(images, targets, 5)
        assert torch.equal(random_other_targets(images.flip(0), targets, 5).flip(0), others)

    def test_one_class_is_refused(self) -> None:
        """There is no other."""
        with pytest.raises(ValueError, match="`n_classes` expected 2 or more, got 1"):
            random_other_targets(random_images(1), torch.tensor([0]), 1)

    def test_same_class_is_refused(self) -> None:
        """It would look like a failure."""
        with pytest.raises(ValueError, match=r"`other_targets` expected another class .* got \[1, 1\] beside \[0, 1\]"):
            class_sensitivity(lambda targets: torch.rand(2, 8, 8), torch.tensor([0, 1]), torch.tensor([1, 1]))

    def test_maps_of_both_classes_are_compared(self) -> None:
        """Each image's two maps."""
        maps = torch.stack(two_maps(2))
        found = class_sensitivity(lambda targets: maps[targets, [0, 1]], torch.tensor([0, 1]), torch.tensor([1, 0]))
        expected = map_similarities(maps[[0, 1], [0, 1]], maps[[1, 0], [0, 1]])
        assert torch.equal(found, expected)


def shapes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n,1,24,24) of noise with a lying, a standing or a square block, and which of them it is."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(n, 1, 24, 24, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    corners = torch.randint(3, 12, (n, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels.tolist(), corners, strict=True):
        height, width = [(3, 10), (10, 3), (7, 7)][label]
        image[:, top : top + height, left : left + width] += 1.5
    return images, labels


@cache
def trained() -> nn.Module:
    """A small rectifier network that tells the blocks apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(80):
        images, labels = shapes(48, step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = shapes(128, 1000)
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    return model.eval()


PASSING: dict[str, Attribution] = {"gradcam": GradCAM("5"), "gradient": InputGradient()}


def randomized(method: Attribution) -> dict[str, float]:
    """Results of a method on eight images, cascading through all layers."""
    model, (images, _) = trained(), shapes(8, 2000)
    targets = model(images).argmax(1)
    result = parameter_randomization(model, lambda copied: explain(copied, images, targets, attributions=method))
    metric = ParameterRandomization(result.layers)
    metric.update(result.randomization_similarities)
    return {name: value.item() for name, value in metric.compute().items()}


def for_two_classes(method: Attribution) -> float:
    """Rank correlation of a method's maps of the first and the second class, on eight images."""
    model, (images, _) = trained(), shapes(8, 2000)
    logits, metric = model(images), ClassSensitivity()

    def explained(targets: Tensor) -> Tensor:
        return explain(model, images, targets, attributions=method)

    metric.update(class_sensitivity(explained, logits.argmax(1), second_best(logits)))
    return metric.compute()["class_rank_correlation"].item()


class TestGuidedGradientFails:
    """What Adebayo et al. found, and what a table of this package must show."""

    @pytest.mark.parametrize("name", PASSING)
    def test_when_parameters_are_randomised(self, name: str) -> None:
        """Its maps stay where those of the gradient and of Grad-CAM are lost."""
        guided, passing = randomized(GuidedGradient()), randomized(PASSING[name])
        assert guided["randomization_rank_correlation"] > 0.6
        assert passing["randomization_rank_correlation"] < 0.3
        for similarity in SIMILARITIES:
            assert guided[f"randomization_{similarity}"] > passing[f"randomization_{similarity}"] + 0.1

    @pytest.mark.parametrize("name", PASSING)
    def test_when_another_class_is_explained(self, name: str) -> None:
        """Its maps of the first and the second class agree."""
        assert for_two_classes(GuidedGradient()) > 0.6
        assert for_two_classes(PASSING[name]) < 0.4


class TestMetrics:
    """What is known after compute."""

    def test_layers_are_told_apart(self) -> None:
        """Averages over the images that have a similarity there, and the number of those that have none."""
        metric = OfThreeLayers(keep_values=True)
        for batch in TestParameterRandomization.batches:
            metric.update(**batch)
        metric.compute()
        values = torch.cat([batch["randomization_similarities"] for batch in TestParameterRandomization.batches])
        for i, name in enumerate(SIMILARITIES):
            torch.testing.assert_close(metric.by_layer[name], values[:, :, i].nanmean(0))
        assert metric.n_undefined_by_layer.tolist() == [2, 2, 4]
        assert metric.n_undefined == 2
        torch.testing.assert_close(metric.values, values[:, :, 0].nanmean(1), equal_nan=True)

    def test_images_without_similarity_are_counted(self) -> None:
        """Not averaged, not dropped in silence."""
        metric = ClassSensitivity(keep_values=True)
        metric.update(torch.tensor([[0.5, 0.5, 0.5], [math.nan, 1.0, 1.0]]))
        assert metric.compute()["class_ssim"].item() == 0.5
        assert metric.n_undefined == 1
        assert metric.values.isnan().tolist() == [False, True]

    @pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3), (2, 3, 2)])
    def test_similarities_of_other_layers_are_refused(self, shape: tuple[int, ...]) -> None:
        """One for each layer that the metric knows."""
        with pytest.raises(ValueError, match=r"`randomization_similarities` expected shape \(N, 3, 3\), got"):
            OfThreeLayers().update(torch.zeros(shape))

    def test_plot_draws_similarities_over_layers(self) -> None:
        """Three lines of one colour for each method."""
        metric = TestParameterRandomization().filled(TestParameterRandomization.batches)
        figure, axes = metric.plot(label="guided")
        metric.plot(ax=axes, label="gradcam")
        assert figure is axes.figure
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["top", "middle", "bottom"]
        assert axes.lines[1].get_ydata() == pytest.approx(metric.by_layer["absolute_rank_correlation"].tolist())
        assert [line.get_color() for line in axes.lines] == ["C0"] * 3 + ["C1"] * 3
        assert axes.get_legend().get_texts()[0].get_text() == "guided rank correlation"

    def test_collection_equals_metrics_alone(self) -> None:
        """Both metrics, fed with all keywords."""
        collection = MetricCollection([ClassSensitivity(), OfThreeLayers()])
        kinds = TestClassSensitivity, TestParameterRandomization
        for classes, layers in zip(*(kind.batches for kind in kinds), strict=True):
            collection.update(**classes, **layers)
        expected = {name: value for kind in kinds for name, value in kind().reference(kind.batches).items()}
        assert {name: v.item() for name, v in collection.compute().items()} == pytest.approx(expected, rel=1e-12)
