"""The whole term: gradients in float64, its parts, its options, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from regularization.nets import TARGETS, images, plain_net
from support import random_images, small_net
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_xai.regularization import (
    AdaptiveWeight,
    ConstantWeight,
    CosineLoss,
    GradientShare,
    GuidedGradientLoss,
    HistogramIntersectionLoss,
    L1DistanceLoss,
    L2DistanceLoss,
    LinearWarmup,
    SigmoidMaskingLoss,
    class_score_teacher,
    keep_saturated,
    loss_teacher,
    mask_saturated,
    negative_loss_teacher,
    weight_by_error,
)


def terms_of(model, term, step=0, criterion=F.cross_entropy, targets=TARGETS):
    """The term of one batch."""
    return term(model, images(), targets, criterion, step)


@pytest.mark.parametrize("batch_norm", ["training", "evaluation"])
@pytest.mark.parametrize("teacher", [loss_teacher, negative_loss_teacher, class_score_teacher])
@pytest.mark.parametrize(
    "error", [CosineLoss(), SigmoidMaskingLoss(), HistogramIntersectionLoss(), L1DistanceLoss(), L2DistanceLoss()]
)
def test_gradient_of_the_term_is_exact_with_the_teacher_held_constant(error, teacher, batch_norm):
    """Gradcheck of L_C + lambda L_R with respect to the parameters of the first layer, in float64.

    The guided gradient is recorded once and replayed, since the teacher is a constant of the objective.
    """
    model = plain_net()
    recorded = []

    def constant_teacher(gradients, guided):
        recorded.append(guided)
        return error(gradients, recorded[0])

    term = GuidedGradientLoss(constant_teacher, ConstantWeight(0.7), teacher=teacher, batch_norm=batch_norm)
    term.image_weights = keep_saturated
    weight = model[0].weight.detach().clone().requires_grad_()

    class WithWeight(nn.Module):
        def __init__(self, weight) -> None:
            super().__init__()
            self.model, self.kernel = model, [weight]

        def forward(self, batch):
            # statistics of its own for each call, so that the next one does not write into a graph that waits
            statistics = {"1.running_mean": torch.zeros(4).double(), "1.running_var": torch.ones(4).double()}
            return torch.func.functional_call(self.model, {"0.weight": self.kernel[0], **statistics}, (batch,))

    def loss(weight):
        return terms_of(WithWeight(weight), term).loss

    torch.autograd.gradcheck(loss, (weight,), eps=1e-6, atol=1e-6, rtol=1e-4)


def reference(model, teacher_sign):
    """L_R with the cosine, from per-image passes through the network, one image a time, in evaluation mode."""
    total = 0.0
    for image, target in zip(images(), TARGETS, strict=True):
        leaf = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(teacher_sign * F.cross_entropy(model(leaf), target[None]), leaf)
        taught = guided_by_hooks(model, image[None], target, teacher_sign)
        total += -F.cosine_similarity(gradient.flatten(), taught.flatten(), dim=0)
    return total / len(TARGETS)


def guided_by_hooks(model, image, target, sign):
    """Guided backpropagation by module hooks, as other libraries do it; here every rectifier is a module."""
    model = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in model)).eval()
    handles = [
        layer.register_full_backward_hook(lambda module, inputs, outputs: tuple(i.clamp(min=0) for i in inputs))
        for layer in model
        if isinstance(layer, nn.ReLU)
    ]
    leaf = image.clone().requires_grad_()
    (guided,) = torch.autograd.grad(sign * F.cross_entropy(model(leaf), target[None]), leaf)
    for handle in handles:
        handle.remove()
    return guided


@pytest.mark.parametrize(("teacher", "sign"), [(loss_teacher, 1), (negative_loss_teacher, -1)])
def test_regularization_equals_the_mean_over_images_one_by_one(teacher, sign):
    """The summed loss keeps 1/N out of the error, whatever the reduction of the criterion."""
    model = plain_net().eval()
    term = GuidedGradientLoss(teacher=teacher)
    expected = reference(model, sign)
    for criterion in (F.cross_entropy, lambda z, t: F.cross_entropy(z, t, reduction="none")):
        found = terms_of(model, term, criterion=criterion)
        torch.testing.assert_close(found.regularization, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.cosine, -expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.classification, F.cross_entropy(model(images()), TARGETS))


def test_minus_the_loss_is_another_teacher_than_the_loss():
    """The guided rule is not odd: the two terms are not each other's negative, nor equal."""
    model = plain_net().eval()
    literal, ours = (terms_of(model, GuidedGradientLoss(teacher=t)) for t in (loss_teacher, negative_loss_teacher))
    assert not torch.isclose(literal.regularization, ours.regularization, rtol=0.05)


def test_weight_and_parts_make_up_the_loss():
    """L = L_C + lambda L_R, lambda by the step."""
    model = plain_net()
    found = terms_of(model, GuidedGradientLoss(weight=LinearWarmup(0.4, steps=10)), step=5)
    assert found.weight == pytest.approx(0.2)
    torch.testing.assert_close(found.loss.detach(), found.classification + 0.2 * found.regularization)


def test_a_number_is_a_constant_weight():
    """Also without a fraction."""
    assert GuidedGradientLoss(weight=0.05).weight == ConstantWeight(0.05)
    assert GuidedGradientLoss(weight=1).weight == ConstantWeight(1)


def test_weight_zero_is_plain_training_bit_for_bit():
    """No other pass, no other rounding, no other gradient."""
    model, plain = plain_net(), plain_net()
    found = terms_of(model, GuidedGradientLoss(weight=ConstantWeight(0.0)))
    found.loss.backward()
    F.cross_entropy(plain(images()), TARGETS).backward()
    assert found.regularization is None
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_every_n_steps_has_n_times_the_weight_in_its_steps_and_none_between():
    """The mean of the weights over n steps is lambda."""
    term = GuidedGradientLoss(weight=ConstantWeight(0.5), every_n_steps=3)
    found = [terms_of(plain_net(), term, step=step) for step in range(6)]
    assert [one.weight for one in found] == [1.5, 0, 0, 1.5, 0, 0]
    assert [one.regularization is None for one in found] == [False, True, True, False, True, True]


@pytest.mark.parametrize("batch_norm", ["training", "evaluation"])
def test_running_statistics_are_updated_once_per_step(batch_norm):
    """As in plain training, also when the term runs a second pass."""
    model, plain = plain_net(), plain_net()
    terms_of(model, GuidedGradientLoss(batch_norm=batch_norm))
    plain(images())
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)
    assert all(module.training for module in model.modules())


def test_batch_norm_in_evaluation_does_not_couple_the_images():
    """The term of a batch is then the mean of the terms of its images; in training mode it is not."""
    model = plain_net()
    model(images())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def alone_and_together(batch_norm):
        term = GuidedGradientLoss(batch_norm=batch_norm)
        alone = []
        for i in range(4):
            model.load_state_dict(before)
            alone.append(term(model, images()[i : i + 1].repeat(2, 1, 1, 1), TARGETS[i].repeat(2), F.cross_entropy, 0))
        model.load_state_dict(before)
        return torch.stack([one.cosine for one in alone]).mean(), terms_of(model, term).cosine

    # the running statistics move with each forward; freeze them so that both see the same
    model[1].momentum = 0.0
    torch.testing.assert_close(*alone_and_together("evaluation"))
    alone, together = alone_and_together("training")
    assert not torch.isclose(alone, together, rtol=1e-3)


def test_saturated_images_are_masked_and_counted():
    """An image at p = 1 - 1e-9 gives noise, not a direction."""
    logits = torch.tensor([[21.0, 0.0], [1.0, 0.0]])
    targets = torch.tensor([0, 0])
    assert mask_saturated(logits, targets).tolist() == [0, 1]
    assert keep_saturated(logits, targets).tolist() == [1, 1]
    torch.testing.assert_close(weight_by_error(logits, targets), 1 - logits.double().softmax(1)[:, 0].float())
    model = plain_net().eval()
    model[-1].weight.data *= 1e4
    found = terms_of(model, GuidedGradientLoss(), targets=model(images()).argmax(1))
    assert found.saturated == 1
    assert found.regularization == 0
    found.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_soft_and_multi_hot_targets_are_accepted():
    """Mixup and BCE: nothing is masked, the class score weighs the classes."""
    soft = torch.tensor([[0.5, 0.5, 0.0]] * 4, dtype=torch.float64)
    for criterion in (F.cross_entropy, F.binary_cross_entropy_with_logits):
        for teacher in (loss_teacher, class_score_teacher):
            found = terms_of(plain_net(), GuidedGradientLoss(teacher=teacher), criterion=criterion, targets=soft)
            found.loss.backward()
            assert found.saturated == 0


def test_the_batch_is_not_written_to():
    """Nor does it start to require gradients, also where the first operation works in place."""
    model = nn.Sequential(nn.ReLU(inplace=True), *plain_net())
    batch = images()
    plain = batch.clone()
    GuidedGradientLoss()(model, batch, TARGETS, F.cross_entropy, 0).loss.backward()
    assert torch.equal(batch, plain)
    assert not batch.requires_grad


def test_a_model_without_rectifiers_is_refused():
    """With the remedy, which works."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(ValueError, match=r'others: Silu.*With `rectifiers="all"` GELU, SiLU and the like count'):
        terms_of(model, GuidedGradientLoss())
    assert terms_of(model, GuidedGradientLoss(rectifiers="all")).regularization.isfinite()


class Backbone(nn.Module):
    """A backbone that runs without gradients, as far as told, and a head with a rectifier of its own or without."""

    def __init__(self, *, hidden, rectified):
        super().__init__()
        self.backbone, self.hidden = plain_net()[:6], hidden
        self.head = nn.Sequential(nn.ReLU() if rectified else nn.Identity(), *plain_net()[6:])

    def forward(self, images):
        with torch.set_grad_enabled(not self.hidden):
            features = self.backbone(images)
        return self.head(features)


@pytest.mark.parametrize("rectified", [False, True])
def test_a_backbone_under_no_grad_is_refused(rectified):
    """It is no lack of rectifiers; the remedy is freezing it, and the backbone then gets no gradient."""
    with pytest.raises(ValueError, match=r"torch\.no_grad\(\).*requires_grad_\(False\) instead"):
        terms_of(Backbone(hidden=True, rectified=rectified), GuidedGradientLoss())
    model = Backbone(hidden=False, rectified=rectified)
    model.backbone.requires_grad_(False)
    terms_of(model, GuidedGradientLoss()).loss.backward()
    assert model.head[-1].weight.grad.any()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


class Checkpointed(nn.Module):
    """The network, recomputed in each backward pass."""

    def __init__(self, *, reentrant=False):
        super().__init__()
        self.net, self.reentrant = plain_net(), reentrant

    def forward(self, images):
        return checkpoint(self.net, images, use_reentrant=self.reentrant)


@pytest.mark.parametrize("options", [{}, {"weight": AdaptiveWeight(GradientShare(), start=7.5e-3)}])
def test_recomputation_under_the_term_leaves_no_trace_in_running_statistics(options):
    """Non-reentrant checkpointing moves them in the forward pass and again in the last backward pass, as without it."""
    model, plain, whole = Checkpointed(), Checkpointed(), plain_net()
    found = terms_of(model, GuidedGradientLoss(**options))
    found.loss.backward()
    F.cross_entropy(plain(images()), TARGETS).backward()
    assert plain.net[1].num_batches_tracked == 2
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)
    expected = terms_of(whole, GuidedGradientLoss(weight=found.weight))  # an adaptive one has moved
    expected.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_checkpointing_that_cannot_recompute_the_term_is_refused():
    """The backward pass of the classification loss is not under the term's mode of batch normalisation."""
    with pytest.raises(RuntimeError, match=r"`batch_norm='evaluation'`.*Train without checkpointing"):
        terms_of(Checkpointed(), GuidedGradientLoss(batch_norm="evaluation"))
    with pytest.raises(RuntimeError, match=r"outside of activation checkpoints.*Use fraction=1, or train without"):
        terms_of(Checkpointed(), GuidedGradientLoss(fraction=0.5))
    with pytest.raises(RuntimeError, match=r"CheckpointFunctionBackward.*use_reentrant=False"):
        terms_of(Checkpointed(reentrant=True), GuidedGradientLoss())


def test_a_float64_model_is_left_alone_by_autocast():
    """As plain PyTorch leaves it."""
    found = []
    for enabled in (False, True):
        model = plain_net()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = terms_of(model, GuidedGradientLoss())
        terms.loss.backward()
        found.append([terms.loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (TARGETS + 5, r"got \(4,\), int64 from 5 to 7"),
        (TARGETS.float(), r"got \(4,\), float32 from 0 to 2"),
        (None, "got NoneType"),
        (TARGETS[:2], r"got \(2,\), int64 from 0 to 1"),
    ],
)
def test_targets_that_the_criterion_does_not_take_are_told_about(targets, got):
    """What was expected, what came, and what the criterion says; with the term and without."""
    for weight in (0.1, 0.0):
        message = rf"`targets` expected .* logits \(4, 3\).* labels .* from 0 to 2, {got}\. The criterion says: .+"
        with pytest.raises(ValueError, match=message):
            terms_of(plain_net(), GuidedGradientLoss(weight=weight), targets=targets)


def test_images_that_are_no_numbers_are_refused():
    """The term falls back to the classification loss where it is not finite alone, and that would be NaN, too."""
    batch = images()
    batch[1:3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="`images` expected finite values, got NaN or infinity in 2 of 4 images"):
        GuidedGradientLoss()(plain_net(), batch, TARGETS, F.cross_entropy, 0)


def test_models_without_double_backward_are_refused():
    """Each with what to do instead."""
    compiled = plain_net()
    compiled.compile(backend="eager")
    synchronised = nn.Sequential(nn.SyncBatchNorm(3), plain_net())
    for model, message in (
        (compiled, "torch.compile has no double backward: train the model that it was given"),
        (torch.compile(plain_net(), backend="eager"), "OptimizedModule"),
        (synchronised, r"SyncBatchNorm '0': .* is missing: use GuidedGradientLoss\(batch_norm='evaluation'\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            terms_of(model, GuidedGradientLoss())
    terms_of(torch.compile(plain_net(), backend="eager")._orig_mod, GuidedGradientLoss()).loss.backward()


def test_synchronised_batch_normalisation_is_taken_by_its_running_statistics():
    """In one process it is plain batch normalisation, and the term is the same."""
    terms = [
        terms_of(model, GuidedGradientLoss(batch_norm="evaluation"))
        for model in (plain_net(), nn.SyncBatchNorm.convert_sync_batchnorm(plain_net()))
    ]
    torch.testing.assert_close(terms[0].loss, terms[1].loss, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"error": 3}, TypeError, "`error` expected an error function"),
        ({"weight": "0.1"}, TypeError, r"`weight` expected a number or a schedule such as LinearWarmup\(0.1, 500\)"),
        ({"weight": -1}, ValueError, "`value` expected a finite number of 0 or more, got -1"),
        ({"rectifiers": "silu"}, ValueError, "`rectifiers` expected 'relu' or 'all', got 'silu'"),
        ({"batch_norm": "eval"}, ValueError, "`batch_norm` expected 'training' or 'evaluation', got 'eval'"),
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` expected 1 or more, got 0"),
        ({"max_nonfinite": 0}, ValueError, "`max_nonfinite` expected 1 or more, got 0"),
        ({"fraction": 0}, ValueError, r"`fraction` expected a number in \(0, 1\], got 0"),
        ({"fraction": 1.5}, ValueError, r"`fraction` expected a number in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    """At construction."""
    with pytest.raises(error, match=message):
        GuidedGradientLoss(**options)


def test_a_criterion_of_another_shape_is_refused():
    """Per class and image, say."""
    with pytest.raises(ValueError, match=r"`criterion` expected to give \(\) or \(4,\), got \(4, 3\)"):
        terms_of(plain_net(), GuidedGradientLoss(), criterion=lambda logits, targets: logits)


def test_the_term_lowers_itself():
    """Fifty steps on the term alone turn the gradient towards the guided one."""
    model = plain_net().float()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    term = GuidedGradientLoss(weight=ConstantWeight(10.0))
    cosines = []
    for step in range(50):
        found = term(model, random_images(), TARGETS, F.cross_entropy, step)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        cosines.append(found.cosine.item())
    assert cosines[-1] > cosines[0] + 0.1


def test_the_small_net_of_other_tests_can_be_trained_with_the_term():
    """Batch normalisation, in-place and functional rectifiers, dropout."""
    model = small_net().train()
    found = GuidedGradientLoss()(model, random_images(), TARGETS, F.cross_entropy, 0)
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
