"""The check without a reference: values on paper, verdicts, false-positive cases, and what a check costs."""

import re
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from integrity.toys import RectifiedToy, Toy, data, trained
from support import Unhappy, assert_same_state, state_of
from torch import nn

from lightning_xai.integrity import (
    CenteredLogits,
    Threshold,
    Verdict,
    calibrated_threshold,
    inspect_model,
    inspect_trace,
)
from lightning_xai.integrity.heads import RECTIFIED, SIGMOIDS, UNDECIDED, UNTRAINED, head_caveats
from lightning_xai.trace import Capture, run
from papers.logit_shift.attacks import (
    EnergyShift,
    NetworkShift,
    PositionShift,
    RowEdit,
    TriggeredShift,
    UniformShift,
    WorstCaseShift,
)

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
    torch.testing.assert_close(inspection.image_shares, expected)  # all pixels are positive, the ReLU passes them on
    assert inspection.mean_row == pytest.approx(1 / 65)
    assert inspection.suspicion == pytest.approx(1 / 65)


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
    assert clean.class_similarity.median().item() == pytest.approx(-1)  # two classes: opposite maps
    assert altered.figures["Grad-CAM disagreement"] > 0.2
    assert altered.class_similarity.median().item() > 0.99  # every class gets the same map


VERDICTS = {
    "clean": (lambda model: model, Verdict.CLEAN),
    "position": (PositionShift("relu2"), Verdict.LOGIT_SHIFT),
    "inner position": (PositionShift("relu1"), Verdict.CLEAN),  # seen at that layer, not behind it
    "uniform": (UniformShift("relu2"), Verdict.LOGIT_SHIFT),
    "rows": (RowEdit(IMAGES), Verdict.LOGIT_SHIFT),
    "worst case": (WorstCaseShift("relu2", IMAGES, share=0.3), Verdict.LOGIT_SHIFT),
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


@pytest.mark.parametrize("attack", [EnergyShift(), NetworkShift(trained(), 10.0)], ids=["energy", "network"])
def test_what_comes_from_the_image_is_seen_at_the_image(attack):
    """The layer's gradients do not contain it."""
    altered = attack(trained())
    at_layer = inspect_model(altered, IMAGES, layer="model.relu2")
    at_image = inspect_model(altered, IMAGES, layer="model.relu2", image_level=True)
    assert at_layer.verdict is Verdict.CLEAN
    assert at_image.verdict is Verdict.LOGIT_SHIFT
    assert at_image.figures["image share"] > 0.5


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


CANNOT_TELL = {
    "decided by chance": (lambda: random_head(), probes(8), UNTRAINED),
    "untrained": (lambda: Toy().eval(), IMAGES, UNDECIDED),
    "rectified": (lambda: trained(RectifiedToy), IMAGES, RECTIFIED),
    "sigmoids": (lambda: sigmoid_head(), probes(12) / 3 - 0.1, SIGMOIDS),
}


@pytest.mark.parametrize(("model", "images", "reason"), CANNOT_TELL.values(), ids=CANNOT_TELL)
def test_clean_heads_that_share_a_lot_are_not_accused(model, images, reason):
    """Their share exceeds the threshold, and the reason is named."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inspection = inspect_model(model(), images, layer="0" if reason in (SIGMOIDS, UNTRAINED) else "relu2")
    assert inspection.suspicion > 0.1
    assert reason in inspection.caveats
    assert inspection.verdict is Verdict.CANNOT_TELL
    assert reason in str(inspection)


def test_caveats_do_not_excuse_a_large_shift_of_a_rectified_head():
    """With t on top the smallest logit is far from 0, so that the shift is told."""
    altered = PositionShift("relu2")(trained(RectifiedToy))
    assert inspect_model(altered, IMAGES, layer="model.relu2").verdict is Verdict.LOGIT_SHIFT


def test_trained_head_has_no_caveats():
    """Neither undecided nor rectified, and not for sigmoids."""
    assert head_caveats(trained()(IMAGES)) == ()


def test_calibration_replaces_the_caveats():
    """Clean models with such a head were consulted: above their threshold is a finding, below it is none."""
    model = trained(RectifiedToy)
    suspicion = inspect_model(model, IMAGES, layer="relu2").suspicion
    for value, verdict in ((0.9 * suspicion, Verdict.LOGIT_SHIFT), (1.1 * suspicion, Verdict.CLEAN)):
        threshold = Threshold(value, clean_models=9)
        assert inspect_model(model, IMAGES, layer="relu2", threshold=threshold).verdict is verdict


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


def test_a_check_of_32_images_costs_one_forward_and_three_sweeps_of_the_head():
    """Under four forwards, since sweeps end at the layer; ``layer=None`` adds one pass of one image."""
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
    assert reached == [(32, 12, 6, 6)] * 3


def test_the_image_level_costs_two_sweeps_to_the_image_more():
    """And no further forward."""
    with mock.patch("torch.autograd.grad", side_effect=torch.autograd.grad) as sweeps:
        inspect_model(trained(), IMAGES, layer="relu2", image_level=True)
    assert [call.args[1].shape[1] for call in sweeps.call_args_list] == [12, 12, 12, 3, 3]


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
    assert re.search(r"share +0\.\d{4}  \(p95 [01]\.\d{4}\)", text)
    assert "(uncalibrated default)" in text
    assert "largest at position (4, 1)" in text


BAD_INPUT = {
    "one class": (trained, data(32)[0][:1].expand(8, -1, -1, -1), "8 that are all predicted as class 0"),
    "one logit": (lambda: Toy(1).eval(), IMAGES, "at least 2 classes for a softmax"),
    "integers": (trained, IMAGES.long(), "finite probe images"),
    "no images": (trained, IMAGES[:0], "finite probe images"),
    "NaN": (trained, IMAGES * torch.nan, "finite probe images"),
    "NaN logits": (lambda: pooled_linear([[1.0, 2.0], [torch.nan, 0.0]]), probes(2), "finite logits"),
}


@pytest.mark.parametrize(("model", "images", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_an_error_that_says_what_to_do(model, images, message):
    """Each with its own words."""
    with pytest.raises(ValueError, match=message):
        inspect_model(model(), images)
