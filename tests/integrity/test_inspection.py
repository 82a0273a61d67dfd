"""The check without a reference: values on paper, verdicts, false-positive cases, and what a check costs."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from integrity.toys import RectifiedToy, Toy, data, inner_lie, trained
from support import Unhappy, assert_same_state, state_of
from torch import nn

from lightning_xai import GradCAM, HiResCAM, explain
from lightning_xai.attribution import Random
from lightning_xai.integrity import (
    CenteredLogits,
    Threshold,
    Verdict,
    calibrated_threshold,
    inspect_model,
    inspect_trace,
)
from lightning_xai.integrity.heads import (
    DISTANCES,
    LOG_PROBABILITIES,
    RECTIFIED,
    REFERENCE_CLASS,
    SIGMOIDS,
    UNDECIDED,
    UNTRAINED,
    innocent_reasons,
)
from lightning_xai.integrity.inspection import ALIKE, VISIBLE
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import pre_softmax, second_best
from lightning_xai.trace import Capture, run
from papers.logit_shift.attacks import (
    EnergyShift,
    NetworkShift,
    PositionShift,
    RowEdit,
    TriggeredShift,
    UniformShift,
)
from papers.logit_shift.red_team import Edited, OneClassLie, neighbours_if_one_hot, off_unlikely
from papers.logit_shift.worst_case import WorstCaseShift

IMAGES = data(32)[0]


def pooled_linear(rows):
    """ReLU, mean over positions, and a linear head with the given rows: every gradient is known."""
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(rows[0]), len(rows)))
    model[3].weight.data = torch.tensor(rows)
    nn.init.zeros_(model[3].bias)
    return model.double().eval()


def probes(classes):
    """Images (12,classes,4,4), positive, of which number i has most of channel i modulo the number of classes."""
    images = 0.3 + 0.1 * torch.rand(12, classes, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images + 3 * torch.eye(classes, dtype=torch.float64)[torch.arange(12) % classes][:, :, None, None]


def test_share_of_a_pooled_linear_head_is_that_of_its_rows():
    """Mean row (1, 1); the centred rows are (8, -8) and its negative: 2 / (2 + 128)."""
    inspection = inspect_model(pooled_linear([[9.0, -7.0], [-7.0, 9.0]]), probes(2), layer="0", image_level=True)
    expected = torch.full((12,), 1 / 65, dtype=torch.float64)
    torch.testing.assert_close(inspection.shares, expected)
    torch.testing.assert_close(inspection.pooled_shares, expected)
    at_image = inspection.elsewhere["image"]
    torch.testing.assert_close(at_image, expected)  # all pixels are positive, the ReLU passes them on
    assert inspection.mean_row == pytest.approx(1 / 65)
    assert inspection.suspicion == 0  # the maps look the same


def test_share_of_a_shift_at_a_position_and_of_a_uniform_one():
    """16 positions, 2 channels, centred gradients (8, -8) / 16; K = 2 at one position, or 2 / 16 at each."""
    model = pooled_linear([[8.0, -8.0], [-8.0, 8.0]])
    rest = 16 * 2 * 0.5**2
    for attack, common, pooled in (
        (PositionShift("0", (1, 2), 2.0), 2 * 2.0**2, 2 * (2 / 16) ** 2),
        (UniformShift("0", 2.0), 16 * 2 * (2 / 16) ** 2, 2 * (2 / 16) ** 2),
    ):
        inspection = inspect_model(attack(model), probes(2), layer="model.0")
        assert inspection.shares[0].item() == pytest.approx(common / (common + rest))
        assert inspection.pooled_shares[0].item() == pytest.approx(pooled / (pooled + 2 * 0.5**2))


def test_position_of_the_shift_is_found():
    """Where the common-mode gradient is largest."""
    inspection = inspect_model(PositionShift("relu2", (4, 1))(trained()), IMAGES)
    assert inspection.position == (4, 1)
    assert inspection.concentration > 0.95


def test_disagreement_is_one_minus_the_rank_correlation_of_the_two_maps():
    """K = 10 over the sum of the activations: the raw map is nearly their sum."""
    model, images = pooled_linear([[9.0, -9.0], [-9.0, 9.0]]), probes(2)
    clean = inspect_model(model, images, layer="0")
    altered = inspect_model(UniformShift("0", 1e4)(model), images, layer="model.0")
    assert clean.figures["Grad-CAM disagreement"] == pytest.approx(0, abs=1e-12)
    assert altered.figures["Grad-CAM disagreement"] > 0.2


VERDICTS = {
    "clean": (lambda model: model, Verdict.CLEAN),
    "position": (PositionShift("relu2"), Verdict.LOGIT_SHIFT),
    "inner position": (PositionShift("relu1"), Verdict.CLEAN),  # seen at that layer, not behind it
    "uniform": (UniformShift("relu2"), Verdict.LOGIT_SHIFT),
    "rows": (RowEdit(IMAGES), Verdict.MAPS_DIFFER),  # no more than a new head shares
    "many rows": (RowEdit(IMAGES, 10.0), Verdict.LOGIT_SHIFT),
    "worst case": (WorstCaseShift("relu2", IMAGES, share=0.3), Verdict.MAPS_DIFFER),
    "energy": (EnergyShift(), Verdict.CLEAN),  # seen at the image
    "trigger": (TriggeredShift(PositionShift("relu2"), torch.full((3, 2, 2), 9.0)), Verdict.CLEAN),
}


@pytest.mark.parametrize(("attack", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_at_the_last_spatial_layer(attack, verdict):
    """With the default threshold; a trigger that no probe carries is not seen, nor what lies before the layer."""
    assert inspect_model(attack(trained()), IMAGES).verdict is verdict


def test_a_shift_is_seen_at_the_layer_it_comes_from():
    """The same edit is invisible behind that layer, where it moves no map either."""
    altered = PositionShift("relu1")(trained())
    assert inspect_model(altered, IMAGES, layer="model.relu1").verdict is Verdict.LOGIT_SHIFT
    assert inspect_model(altered, IMAGES, layer="model.relu2").verdict is Verdict.CLEAN


@pytest.mark.parametrize("attack", [EnergyShift(), NetworkShift(trained(), 30.0)], ids=["energy", "network"])
def test_what_comes_from_the_image_is_seen_at_the_image(attack):
    """The layer's gradients do not contain it. The same network's largest logit shows in the maps of other classes."""
    altered = attack(trained())
    at_layer = inspect_model(altered, IMAGES, layer="model.relu2")
    at_image = inspect_model(altered, IMAGES, layer="model.relu2", image_level=True, targets=second_best)
    assert at_layer.verdict is Verdict.CLEAN
    assert at_image.verdict is Verdict.LOGIT_SHIFT
    assert at_image.figures["image share"] > 0.95


def test_row_edits_show_in_the_mean_row():
    """Mean rows of trained networks are small; a vector of the rows' size is half of the whole."""
    clean, altered = (inspect_model(one, IMAGES).mean_row for one in (trained(), RowEdit(IMAGES)(trained())))
    assert clean < 0.05
    assert altered == pytest.approx(0.5, abs=0.05)


def test_mean_row_is_not_told_where_something_follows_the_last_layer():
    """A ReLU lies between the rows and the logits."""
    assert inspect_model(trained(RectifiedToy), IMAGES, layer="relu2").mean_row is None


def test_mean_row_is_not_told_where_a_repair_takes_it_off():
    """The edited rows are still there, behind a mean that is subtracted."""
    inspection = inspect_model(CenteredLogits(RowEdit(IMAGES)(trained())), IMAGES)
    assert inspection.mean_row is None
    assert inspection.verdict is Verdict.CLEAN


def sigmoid_head():
    """Twelve rows (11 e_j - 5): one class present, all others pushed down together, as training for sigmoids does."""
    return pooled_linear((11 * torch.eye(12) - 5).tolist())


def random_head():
    """Rows of equal length at right angles, as random ones nearly are: they share 1/8, and large ones decide."""
    return pooled_linear((50 * torch.linalg.qr(torch.randn(8, 8))[0]).tolist())


def behind(edit):
    """The toy, and an edit of its logits (N,K) and last activations (N,D,h,w)."""
    return Edited(trained(), "relu2", edit)


def of_classes(classes):
    """Probes of some of the toy's classes, and the toy's logits restricted to them."""
    return behind(lambda logits, activations: logits[:, :classes]), IMAGES[torch.arange(32) % 4 < classes]


HONEST = {
    "decided by chance": (random_head, probes(8), UNTRAINED),
    "untrained": (lambda: Toy().eval(), IMAGES, UNDECIDED),
    "rectified": (lambda: trained(RectifiedToy), IMAGES, RECTIFIED),
    "sigmoids": (sigmoid_head, probes(12) / 3 - 0.1, SIGMOIDS),
    "log-softmax": (lambda: behind(lambda z, _: z.log_softmax(1)), IMAGES, LOG_PROBABILITIES),
    "reference class": (lambda: behind(lambda z, _: z - z[:, :1]), IMAGES, REFERENCE_CLASS),
    "distances": (
        lambda: behind(lambda z, a: 3 * z - a.mean((2, 3)).square().sum(1, keepdim=True) - 60),
        IMAGES,
        DISTANCES,
    ),
}


@pytest.mark.parametrize(("model", "images", "reason"), HONEST.values(), ids=HONEST)
def test_honest_heads_are_not_accused_and_the_reason_is_named(model, images, reason):
    """Their maps may well differ: that is said, and what could be the reason."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model()
        layer = "0" if isinstance(model, nn.Sequential) else "model.relu2" if hasattr(model, "model") else "relu2"
        inspection = inspect_model(model, images, layer=layer)
    assert reason in inspection.reasons
    assert inspection.verdict is (Verdict.MAPS_DIFFER if inspection.worst.max() > ALIKE else Verdict.CLEAN)
    assert (reason in str(inspection)) == (inspection.verdict is Verdict.MAPS_DIFFER)


@pytest.mark.parametrize("classes", [2, 3])
def test_heads_restricted_to_some_classes_are_not_accused(classes):
    """Nor are heads of two and three classes altogether."""
    model, images = of_classes(classes)
    assert not inspect_model(model, images, layer="model.relu2").verdict.alarms


def test_two_classes_of_log_probabilities_are_clean():
    """Their raw and centred maps are equal up to scale, though half of the gradient is common."""
    images = of_classes(2)[1]
    inspection = inspect_model(behind(lambda z, _: z[:, :2].log_softmax(1)), images, layer="model.relu2")
    assert inspection.figures["share"] == pytest.approx(0.5, abs=0.01)
    assert inspection.verdict is Verdict.CLEAN


def test_reasons_excuse_no_shift():
    """Each of them is imitated by a number added to all logits; what is found is said all the same, with the reason."""
    wave = lambda a: torch.sin(100 * a.mean((2, 3)).sum(1, keepdim=True))  # noqa: E731
    disguises = {
        "sigmoids": (lambda z, a: z - z.logsumexp(1, keepdim=True) + 0.7 + 0.3 * wave(a), SIGMOIDS),
        "rectified": (lambda z, a: z - z.amin(1, keepdim=True) + 0.3 + 0.3 * wave(a), RECTIFIED),
        "distances": (lambda z, a: z - 100 + 10 * wave(a), DISTANCES),
    }
    for edit, reason in disguises.values():
        inspection = inspect_model(behind(edit), IMAGES, layer="model.relu2")
        assert reason in inspection.reasons
        assert inspection.verdict is Verdict.LOGIT_SHIFT


def test_trained_head_has_no_reasons():
    """Neither undecided nor rectified, and not for sigmoids."""
    assert innocent_reasons(trained()(IMAGES)) == ()


def test_a_shift_on_some_classes_is_seen_and_its_images_are_named():
    """The median image is as it was; the upper tail is judged."""
    noise = torch.randn(12, 6, 6, generator=torch.Generator().manual_seed(0))

    def shifted(logits, activations):
        return logits + 10 * ((logits.argmax(1) == 1) * (noise * activations).sum((1, 2, 3)))[:, None]

    inspection = inspect_model(behind(shifted), IMAGES, layer="model.relu2")
    assert inspection.worst.median() < 0.05
    assert inspection.verdict is Verdict.LOGIT_SHIFT
    rows = (trained()(IMAGES).argmax(1) == 1).nonzero()[:, 0].tolist()
    assert set(inspection.differing) <= set(rows)
    assert ", ".join(map(str, inspection.differing)) in str(inspection)


@pytest.mark.parametrize("strength", [2.8, 3.0, 3.5, 10.0])
def test_what_is_called_clean_was_not_moved(strength):
    """The mean logit itself as a shift: either maps are not alike, or the raw map is where the clean model's was."""
    clean, altered = trained(), behind(lambda z, _: z - strength * z.mean(1, keepdim=True))
    methods = {"cam": GradCAM("relu2", relu=False), "hires": HiResCAM("relu2", relu=False)}
    before = explain(clean, IMAGES, attributions=methods, score=pre_softmax)
    moved = {name: replace(one, layer="model.relu2") for name, one in methods.items()}
    after = explain(altered, IMAGES, attributions=moved, score=pre_softmax)
    kept = min(float(rank_correlation(before[name], after[name]).min()) for name in methods)
    assert kept >= 0.9 or inspect_model(altered, IMAGES, layer="model.relu2").verdict is not Verdict.CLEAN


def test_two_maps_alike_to_a_third_do_not_look_different():
    """The promise of the verdict: arc cosines of correlations are distances."""
    assert 2 * math.acos(1 - ALIKE) < math.acos(1 - VISIBLE)


def test_a_score_that_is_steered_through_classes_without_probability_is_named():
    """Probabilities and raw maps stay; the centred score's maps move, and not the raw logit's."""
    inspection = inspect_model(behind(off_unlikely(30.0, at=(2, 2))), IMAGES, layer="model.relu2")
    assert inspection.stands_apart == "centred score"
    assert not inspection.verdict.alarms
    assert "the centred score's maps stand apart" in str(inspection)
    assert inspect_model(PositionShift("relu2")(trained()), IMAGES).stands_apart == "raw logit"


def test_a_backward_pass_that_acts_on_one_class_alone_is_a_false_gradient():
    """Logits are the same; the function that does it is listed."""
    inspection = inspect_model(behind(lambda z, _: OneClassLie.apply(z)), IMAGES, layer="model.relu2")
    assert inspection.verdict is Verdict.FALSE_GRADIENT
    assert any("OneClassLie" in one for one in inspection.hooks)
    assert "OneClassLie" in str(inspection)


def test_a_backward_hook_that_acts_on_one_class_alone_is_a_false_gradient():
    """It hangs on the head, and is listed, also where it does nothing."""
    model = trained()

    def turned(module, gradients):
        return (neighbours_if_one_hot(gradients[0]),)

    model.head.register_full_backward_pre_hook(turned)
    inspection = inspect_model(model, IMAGES, layer="relu2")
    assert inspection.verdict is Verdict.FALSE_GRADIENT
    assert inspection.hooks == ("backward pre hook of 'head'",)


def test_a_lie_at_a_layer_of_a_given_method_is_a_false_gradient():
    """The layer behind it, which is checked without methods, shows nothing; the image does."""
    assert inspect_model(inner_lie(), IMAGES, layer="relu2").verdict is Verdict.CLEAN
    methods = {"inner": GradCAM("relu1")}
    assert inspect_model(inner_lie(), IMAGES, layer="relu2", attributions=methods).verdict is Verdict.FALSE_GRADIENT
    assert inspect_model(inner_lie(), IMAGES, layer="relu2", image_level=True).verdict is Verdict.FALSE_GRADIENT
    assert inspect_model(trained(), IMAGES, layer="relu2", attributions=methods).verdict is Verdict.CLEAN


def test_maps_of_given_methods_are_compared():
    """At a layer of their own: the shift is seen there and not behind."""
    altered = PositionShift("relu1", strength=100.0)(trained())
    methods = {"inner": GradCAM("model.relu1")}
    inspection = inspect_model(altered, IMAGES, layer="model.relu2", attributions=methods)
    assert inspection.disagreement["Grad-CAM"].max() < ALIKE
    assert inspection.disagreement["inner"].median() > VISIBLE
    assert inspection.figures["share"] < 0.1
    assert inspection.figures["model.relu1 share"] > 0.95
    assert inspection.verdict is Verdict.LOGIT_SHIFT
    with pytest.raises(ValueError, match="methods that explain a score, got Random"):
        inspect_model(altered, IMAGES, layer="model.relu2", attributions={"random": Random()})


def test_calibration_moves_the_threshold():
    """Below the suspicion it alarms, above it does not."""
    model = UniformShift("relu2", 1.0)(trained())
    suspicion = inspect_model(model, IMAGES, layer="model.relu2").suspicion
    for value, alarms in ((0.9 * suspicion, True), (1.1 * suspicion, False)):
        threshold = Threshold(value, clean_models=9)
        assert inspect_model(model, IMAGES, layer="model.relu2", threshold=threshold).verdict.alarms is alarms


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 0.19), (0.1, 0.18), (0.5, 0.1)])
def test_calibrated_threshold_is_the_conformal_quantile(rate, expected):
    """Of 19 models: the 19th, the 18th and the 10th smallest of 20 (1 - rate) ranks."""
    clean = [SimpleNamespace(suspicion=(i + 1) / 100) for i in range(19)]
    assert calibrated_threshold(clean[::-1], rate) == Threshold(expected, 19)


def test_calibrated_threshold_keeps_its_rate():
    """Over 2000 draws of 9 clean models and one more, at a stated rate of 0.2."""
    draws = torch.rand(2000, 10, generator=torch.Generator().manual_seed(0)).tolist()
    checks = [[SimpleNamespace(suspicion=value) for value in draw] for draw in draws]
    alarms = [new.suspicion > calibrated_threshold(clean, 0.2).value for *clean, new in checks]
    assert sum(alarms) / len(alarms) == pytest.approx(0.2, abs=0.03)


def test_too_few_clean_models_for_a_rate_are_an_error():
    """A rate of 0.05 needs 19."""
    with pytest.raises(ValueError, match=r"at least 19 clean models for a false positive rate of 0\.05, got 2"):
        calibrated_threshold([SimpleNamespace(suspicion=0.1)] * 2)
    with pytest.raises(ValueError, match=r"`false_positive_rate` expected a number in \(0, 1\), got 0"):
        calibrated_threshold([SimpleNamespace(suspicion=0.1)] * 2, 0)


def test_a_check_of_32_images_costs_one_forward_and_four_sweeps_of_the_head():
    """Under four forwards, since sweeps end at the layer; ``layer=None`` adds one of each, of one image."""
    model = trained()
    sizes, reached = [], []
    model.conv1.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    original = torch.autograd.grad

    def counted(outputs, inputs, *args, **kwargs):
        reached.append(tuple(inputs.shape))
        return original(outputs, inputs, *args, **kwargs)

    with mock.patch("torch.autograd.grad", counted):
        inspect_model(model, IMAGES)
    assert sizes == [1, 32]
    assert reached == [(1, 12, 6, 6), *[(32, 12, 6, 6)] * 4]


def test_the_image_level_costs_four_sweeps_to_the_image_more():
    """And no further forward."""
    with mock.patch("torch.autograd.grad", side_effect=torch.autograd.grad) as sweeps:
        inspect_model(trained(), IMAGES, layer="relu2", image_level=True)
    assert [call.args[1].shape[1] for call in sweeps.call_args_list] == [12, 3, 12, 3, 12, 3, 12, 3]


def test_a_trace_that_is_there_already_is_inspected_without_a_pass():
    """The same result as from the model."""
    model = trained()
    trace = run(model, IMAGES, Capture({"relu2": model.relu2}))
    with mock.patch.object(Toy, "forward", side_effect=AssertionError):
        inspection = inspect_trace(trace, "relu2")
    expected = inspect_model(model, IMAGES, layer="relu2")
    torch.testing.assert_close(inspection.shares, expected.shares, rtol=0, atol=0)
    assert inspection.layer == expected.layer == "relu2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("attack", "verdict"), [(None, Verdict.CLEAN), (UniformShift("relu2"), Verdict.LOGIT_SHIFT)])
def test_half_precision_gives_the_same_verdict(dtype, attack, verdict):
    """Of clean and altered models."""
    model = trained().to(dtype)
    model = model if attack is None else attack(model)
    assert inspect_model(model, IMAGES.to(dtype)).verdict is verdict


def test_model_in_training_mode_is_inspected_in_evaluation_mode_and_left_as_it_is():
    """The same figures, modes and statistics as before."""
    model = trained().train()
    before = state_of(model)
    found = inspect_model(model, IMAGES)
    assert_same_state(before, state_of(model))
    assert found.figures == inspect_model(trained(), IMAGES).figures


def test_model_is_left_as_it_is_after_an_error():
    """The forward raises."""
    model = nn.Sequential(trained(), Unhappy())
    model[1].happy = False
    before = state_of(model)
    with pytest.raises(ArithmeticError):
        inspect_model(model, IMAGES, layer="0.relu2")
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inspection_works_where_gradients_are_off(mode):
    """As in validation."""
    model = trained()
    with mode():
        found = inspect_model(model, IMAGES)
    assert found.figures == inspect_model(model, IMAGES).figures


def test_inspection_prints_verdict_figures_and_place():
    """What a user reads."""
    text = str(inspect_model(PositionShift("relu2", (4, 1))(trained()), IMAGES))
    assert text.startswith("logit shift at 'model.relu2', 32 images")
    assert re.search(r"share +[01]\.\d{4}\n", text)
    assert "(threshold 0.95 (default))" in text
    assert re.search(r"maps look different on \d+ images: \d+", text)
    assert "largest at position (4, 1)" in text


BAD_INPUT = {
    "one class": (trained, data(32)[0][:1].expand(8, -1, -1, -1), "8 that are all predicted as class 0"),
    "one logit": (lambda: Toy(1).eval(), IMAGES, "at least 2 classes for a softmax"),
    "integers": (trained, IMAGES.long(), "of a floating dtype"),
    "no images": (trained, IMAGES[:0], "at least one image"),
    "NaN": (trained, IMAGES * torch.nan, "finite values"),
    "NaN logits": (lambda: pooled_linear([[1.0, 2.0], [torch.nan, 0.0]]), probes(2), "finite logits"),
}


@pytest.mark.parametrize(("model", "images", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_an_error_that_says_what_to_do(model, images, message):
    """Each with its own words."""
    with pytest.raises(ValueError, match=message):
        inspect_model(model(), images)
