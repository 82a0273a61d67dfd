"""Scores against float64 references, targets against hand-made answers."""

import pytest
import torch
import torch.nn.functional as F

from lightning_xai.scores import (
    centered,
    label,
    log_odds,
    log_sigmoid,
    log_softmax,
    post_softmax,
    pre_softmax,
    resolve_targets,
    second_best,
    sigmoid,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("score", "reference"),
    [
        (pre_softmax, lambda z, c: z[c]),
        (centered, lambda z, c: z[c] - sum(z) / 3),
        (log_odds, lambda z, c: z[c] - torch.cat([z[:c], z[c + 1 :]]).exp().sum().log()),
        (log_softmax, lambda z, c: F.log_softmax(z, 0)[c]),
        (post_softmax, lambda z, c: z[c].exp() / z.exp().sum()),
        (sigmoid, lambda z, c: 1 / (1 + (-z[c]).exp())),
        (log_sigmoid, lambda z, c: -(1 + (-z[c]).exp()).log()),
    ],
)
def test_scores_equal_their_definitions(score, reference):
    """Each score is the textbook formula, image by image."""
    expected = torch.stack([reference(z, c) for z, c in zip(LOGITS, TARGETS, strict=True)])
    torch.testing.assert_close(score(LOGITS, TARGETS), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("margin", [5.0, 40.0, 90.0])
def test_softmax_scores_keep_their_gradient_when_saturated(margin):
    """At p = 1 in float32 the gradient of log p is still (1 - p)(e_c - softmax of the others), to float precision."""
    exact = torch.tensor([[margin, 0.0, -1.0]], dtype=torch.float64)
    others = torch.tensor([0.0, -1.0], dtype=torch.float64).softmax(0)
    gap = torch.sigmoid(torch.logsumexp(exact[0, 1:], 0) - margin)
    expected = gap * torch.tensor([1.0, *(-others)], dtype=torch.float64)
    for score in (log_softmax, post_softmax):  # p is 1 to 1 % in all three cases
        logits = exact.float().requires_grad_()
        (gradient,) = torch.autograd.grad(score(logits, torch.tensor([0])).sum(), logits)
        torch.testing.assert_close(gradient[0].double() / expected, torch.ones(3).double(), rtol=0.01, atol=0)
        assert gradient.sum().abs() <= 1e-6 * gradient.abs().sum()


@pytest.mark.parametrize("score", [centered, log_odds, log_softmax, post_softmax])
def test_zero_sum_scores_do_not_see_a_common_shift(score):
    """Z + t leaves the score; the raw logit follows t."""
    torch.testing.assert_close(score(LOGITS + 7.5, TARGETS), score(LOGITS, TARGETS))
    assert not torch.allclose(pre_softmax(LOGITS + 7.5, TARGETS), pre_softmax(LOGITS, TARGETS))


def test_log_odds_are_deaf_to_classes_without_probability_and_do_not_saturate():
    """The gradient is the class minus the softmax over the others, whatever the margin; two classes: twice centred."""
    logits = torch.tensor([[60.0, 0.0, -40.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(logits, torch.tensor([0])).sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]), rtol=0, atol=1e-12)
    two = LOGITS[:, :2]
    torch.testing.assert_close(log_odds(two, TARGETS // 2), 2 * centered(two, TARGETS // 2))


def test_half_precision_logits_give_float32_scores():
    """Softmax in bfloat16 would lose most digits."""
    for score in (pre_softmax, centered, log_odds, log_softmax, post_softmax, sigmoid):
        assert score(LOGITS.bfloat16(), TARGETS).dtype == torch.float32


def test_one_logit_is_explained_for_either_side():
    """Target 1 explains z, target 0 explains -z."""
    logits = torch.tensor([[0.7], [0.7]])
    torch.testing.assert_close(sigmoid(logits, torch.tensor([1, 0])), torch.tensor([0.7, -0.7]).sigmoid())
    assert resolve_targets(None, logits).tolist() == [1, 1]
    assert resolve_targets(second_best, logits).tolist() == [0, 0]


@pytest.mark.parametrize("score", [centered, log_odds, log_softmax, post_softmax])
def test_softmax_scores_refuse_one_logit(score):
    """A softmax over one class is constant; the message names what to use."""
    with pytest.raises(ValueError, match=r"2 classes, got shape \(2, 1\).*score=sigmoid.*log_probability=log_sigmoid"):
        score(torch.zeros(2, 1), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, [0, 1]),
        (2, [2, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([1, 1], dtype=torch.int32), [1, 1]),
        (second_best, [2, 2]),
        (label, [1, 2]),
        (lambda logits, labels: labels - 1, [0, 1]),
    ],
)
def test_targets_may_be_said_in_many_ways(targets, expected):
    """Whatever is given becomes one int64 class per image."""
    found = resolve_targets(targets, LOGITS, torch.tensor([1, 2]))
    assert found.tolist() == expected
    assert found.dtype == torch.long


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (3, ValueError, r"classes in \[0, 2\], got 3"),
        (-1, ValueError, r"classes in \[0, 2\], got -1"),
        ([0], ValueError, r"one class for each of the 2 images, got shape \(1,\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "got torch.float32"),
        ("predicted", TypeError, "got str"),
        (label, ValueError, "expected labels, got none"),
    ],
)
def test_wrong_targets_are_refused(targets, error, message):
    """The message says what was expected and what came."""
    with pytest.raises(error, match=message):
        resolve_targets(targets, LOGITS)


def test_label_refuses_multi_hot_labels():
    """Which of several labels to explain is for the user to say."""
    with pytest.raises(ValueError, match=r"one integer per image, got torch.float32 of shape"):
        label(LOGITS, torch.ones(2, 3))


def test_targets_made_in_inference_mode_can_be_used_in_a_graph():
    """Labels in validate and test are inference tensors; their copy made outside is not."""
    with torch.inference_mode():
        labels = torch.tensor([1, 2])
    assert not resolve_targets(label, LOGITS, labels).is_inference()
