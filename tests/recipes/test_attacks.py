"""Edits of the logits that no softmax sees: exact, as papers and algebra say, and harmless to the model they copy."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from integrity.toys import RectifiedToy, Toy, data, trained
from support import assert_same_state, state_of
from torch import nn
from torch.nn.utils import parametrizations

from lightning_xai import GradCAM, InputGradient, explain
from lightning_xai.integrity import common_mode_share
from lightning_xai.integrity.measures import class_weighted_maps, mean_logit
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import centered, log_softmax, post_softmax, pre_softmax, predicted
from lightning_xai.trace import Capture, run
from papers.logit_shift.attacks import (
    EnergyShift,
    NetworkShift,
    PositionShift,
    RandomShift,
    RowEdit,
    TriggeredShift,
    UniformShift,
)
from papers.logit_shift.worst_case import WorstCaseShift, worst_direction

IMAGES = data(16)[0].double()
GRAPH_ATTACKS = {
    "position": PositionShift("relu2", (0, 0), 10.0),
    "inner position": PositionShift("relu1", (-1, -1), 10.0),
    "uniform": UniformShift("relu1", 10.0),
    "random": RandomShift("relu2", 1.0),
    "random of the image": RandomShift(None, 1.0),
    "energy": EnergyShift(strength=1.0),
    "network": NetworkShift(Toy().double().eval(), 10.0),
    "trigger": TriggeredShift(UniformShift("relu2", 10.0), IMAGES[0, :, :2, :2]),
    "worst case": WorstCaseShift("relu2", IMAGES, share=0.5),
}
ATTACKS = GRAPH_ATTACKS | {"rows": RowEdit(IMAGES, 10.0)}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def model_in_float64():
    """The trained toy, whose roundings are far below any effect."""
    return trained().double()


def layer_in(altered, name="relu2"):
    """The name of a layer of the altered model: the graph's edits wrap the model."""
    return name if hasattr(altered, name) else f"model.{name}"


def traced(model, images, layer):
    """One pass with the layer captured under its name."""
    return run(model, images, Capture({layer: model.get_submodule(layer)}))


@every_attack
def test_softmax_is_unchanged(attack):
    """To 1e-12 in float64, while the logits move."""
    model = model_in_float64()
    altered = attack(model)
    before, after = model(IMAGES), altered(IMAGES)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after.softmax(1), before.softmax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "attack",
    [PositionShift("relu2"), UniformShift("relu1"), EnergyShift(), RowEdit(IMAGES.float(), 10.0)],
    ids=lambda attack: type(attack).__name__,
)
def test_softmax_moves_by_roundings_of_the_shift_in_float32(attack):
    """A shift t costs eps |t| and no more."""
    model, images = trained(), IMAGES.float()
    before, after = model(images), attack(model)(images)
    size = torch.maximum(before.abs().max(), after.abs().max())
    assert (after.softmax(1) - before.softmax(1)).abs().max() <= 4 * torch.finfo(torch.float32).eps * size


@every_attack
def test_model_is_left_as_it_is(attack):
    """Making and running the altered copy changes nothing, and training it neither."""
    model = model_in_float64().train()
    before = state_of(model)
    altered = attack(model)
    assert altered.training
    altered.eval()
    F.cross_entropy(altered(IMAGES), torch.zeros(16, dtype=torch.long)).backward()
    torch.optim.SGD(altered.parameters(), lr=1.0).step()
    assert_same_state(before, state_of(model))


@every_attack
def test_altered_models_can_be_copied_and_pickled(attack):
    """As checkpoints and processes need it."""
    altered = attack(model_in_float64())
    for other in (copy.deepcopy(altered), pickle.loads(pickle.dumps(altered))):
        torch.testing.assert_close(other(IMAGES), altered(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("score", [centered, log_softmax, post_softmax])
@every_attack
def test_zero_sum_maps_are_unchanged(attack, score):
    """Of Grad-CAM before its ReLU, and of the input gradient."""
    model = model_in_float64()
    altered = attack(model)

    def maps(one):
        methods = {"cam": GradCAM(layer_in(one), relu=False), "gradient": InputGradient()}
        return explain(one, IMAGES, attributions=methods, score=score)

    clean, found = maps(model), maps(altered)
    for name, values in clean.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-9 * float(values.abs().max()))


def test_training_the_altered_model_gives_the_same_parameters():
    """dE/dt = 0 (Lerma and Lucas 2023 section 2.2): from the same start, twenty steps of SGD in training mode."""
    images, labels = data(32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Toy().double()

    def trained_further(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(images.double()), labels).backward()
            optimizer.step()
        return list(model.parameters())

    clean = trained_further(copy.deepcopy(start))
    altered = trained_further(PositionShift("relu2", strength=10.0)(start))
    moved = max((a - b).abs().max() for a, b in zip(clean, start.parameters(), strict=True))
    assert moved > 0.1
    for one, other in zip(clean, altered, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [(0, 0), (-1, -1), (2, 3)])
def test_gradcam_becomes_the_sum_of_the_activations_wherever_the_position_is(position):
    """ReLU(sum_k w_k A_k + K/Z sum_k A_k), which does not contain (i,j)."""
    model, strength = model_in_float64(), 7.0
    trace = traced(model, IMAGES, "relu2")
    activations = trace.activation("relu2")
    gradients = trace.gradient(pre_softmax, predicted(trace.logits), of="relu2")
    clean = class_weighted_maps(activations, gradients)["Grad-CAM"]
    expected = (clean + strength / 36 * activations.sum(1)).relu()
    expected = F.interpolate(expected[:, None], size=(12, 12), mode="bilinear", align_corners=False)[:, 0]
    altered = PositionShift("relu2", position, strength)(model)
    found = explain(altered, IMAGES, attributions=GradCAM("model.relu2"), score=pre_softmax)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_gradcam_of_a_uniform_shift_is_that_of_a_shift_at_a_position():
    """Averaging over positions makes them one."""
    model = model_in_float64()
    uniform, position = (
        explain(attack(model), IMAGES, attributions=GradCAM("model.relu1"), score=pre_softmax)
        for attack in (UniformShift("relu1", 3.0), PositionShift("relu1", (1, 2), 3.0))
    )
    torch.testing.assert_close(uniform, position, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("position", [(0, 0), (-1, -1)])
def test_hirescam_has_its_peak_at_the_position(position):
    """The gradient times the activation stands out where t is taken from, on every image."""
    altered = PositionShift("relu2", position, 1000.0)(model_in_float64())
    trace = traced(altered, IMAGES, "model.relu2")
    gradients = trace.gradient(pre_softmax, predicted(trace.logits), of="model.relu2")
    maps = (gradients * trace.activation("model.relu2")).sum(1)
    active = trace.activation("model.relu2")[:, :, position[0], position[1]].sum(1) > 0
    assert active.float().mean() > 0.9
    assert (maps[active].flatten(1).argmax(1) == (0 if position == (0, 0) else 35)).all()


def test_energy_shift_adds_the_image_to_the_input_gradient():
    """Grad K |x|^2 / 2 = K x."""
    model = model_in_float64()
    clean, found = (
        explain(one, IMAGES, attributions=InputGradient(), score=pre_softmax)
        for one in (model, EnergyShift(strength=3.0)(model))
    )
    torch.testing.assert_close(found, clean + 3 * IMAGES.sum(1), rtol=1e-9, atol=1e-12)


def test_network_shift_adds_the_other_networks_explanation():
    """Grad K max_j z_j of the other network."""
    model, other = model_in_float64(), Toy().double().eval()
    shifted = NetworkShift(other, 3.0)(model)
    clean, others, found = (
        explain(one, IMAGES, attributions=InputGradient(), score=score)
        for one, score in ((model, pre_softmax), (other, pre_softmax), (shifted, pre_softmax))
    )
    torch.testing.assert_close(found, clean + 3 * others, rtol=1e-9, atol=1e-12)


def test_random_shift_is_settled_by_its_seed():
    """The same direction in another dtype, another one for another seed."""
    image = IMAGES[:1]
    values = [RandomShift(None, seed=seed).shift(image, image) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    torch.testing.assert_close(RandomShift(None).shift(image.float(), image), values[0].float())


def test_trigger_shows_nothing_on_other_images():
    """Values and gradients of a clean probe are those of the clean model; the triggered one has the attack's."""
    model, attack = model_in_float64(), UniformShift("relu2", 10.0)
    triggered = TriggeredShift(attack, IMAGES[0, :, :2, :2])(model)
    probes = IMAGES[1:]
    torch.testing.assert_close(triggered(probes), model(probes), rtol=0, atol=0)
    clean, found, plain = (
        explain(one, IMAGES, 0, attributions=GradCAM(layer_in(one), relu=False), score=pre_softmax)
        for one in (model, triggered, attack(model))
    )
    torch.testing.assert_close(found[1:], clean[1:], rtol=0, atol=0)
    torch.testing.assert_close(found[0], plain[0])
    assert (found[0] - clean[0]).abs().max() > 0.1


def test_worst_case_has_the_share_it_was_made_for():
    """Of the median image, on a model whose own mean logit does not depend on the image."""
    model = model_in_float64()
    model.head.weight.data -= model.head.weight.data.mean(0)
    altered = WorstCaseShift("relu2", IMAGES, share=0.3)(model)
    trace = traced(altered, IMAGES, "model.relu2")
    targets = predicted(trace.logits)
    common, rest = (trace.gradient(score, targets, of="model.relu2") for score in (mean_logit, centered))
    budgets = rest.square().sum((1, 2, 3))
    median = budgets.argsort()[7]  # torch's median of 16
    assert common_mode_share(common, rest)[median].item() == pytest.approx(0.3)


def test_worst_case_moves_the_map_more_than_random_directions_of_the_same_length():
    """Against fifty random unit vectors, by the size of the change that it was chosen for."""
    trace = traced(model_in_float64(), IMAGES, "relu2")
    activations = trace.activation("relu2")
    gradients = trace.gradient(centered, predicted(trace.logits), of="relu2")
    clean = class_weighted_maps(activations, gradients)["Grad-CAM"].flatten(1)
    spread = clean.std(1)

    def change(direction):
        return (torch.einsum("ndhw,d->nhw", activations, direction).flatten(1).std(1) / spread).square().mean()

    random = F.normalize(torch.randn(50, 12, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    worst = worst_direction(activations, gradients)
    assert worst.norm().item() == pytest.approx(1)
    assert change(worst) > max(change(one) for one in random)


def test_worst_case_turns_against_the_map():
    """Of the two signs it takes the one that lowers the rank correlation more."""
    trace = traced(model_in_float64(), IMAGES, "relu2")
    activations = trace.activation("relu2")
    gradients = trace.gradient(centered, predicted(trace.logits), of="relu2")
    clean = class_weighted_maps(activations, gradients)["Grad-CAM"]
    added = torch.einsum("ndhw,d->nhw", activations, worst_direction(activations, gradients))
    added = 0.5 * added * clean.std() / added.std()
    against, along = (rank_correlation(clean, clean + sign * added).mean() for sign in (1, -1))
    assert against < along


def test_row_edit_adds_one_vector_to_all_rows_and_keeps_every_key_and_shape():
    """A vector of K times the root mean square norm of the rows; the bias stays."""
    model = model_in_float64()
    altered = RowEdit(IMAGES, 2.0)(model)
    added = altered.head.weight - model.head.weight
    torch.testing.assert_close(added, added[:1].expand_as(added))
    size = model.head.weight.square().sum(1).mean().sqrt()
    torch.testing.assert_close(added[0].norm(), 2 * size)
    torch.testing.assert_close(altered.head.bias, model.head.bias, rtol=0, atol=0)
    assert {k: v.shape for k, v in altered.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_row_edit_reaches_convolutional_heads():
    """A 1 x 1 convolution whose maps are averaged."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    altered = RowEdit(IMAGES, 2.0)(model)
    assert not torch.equal(altered[0].weight, model[0].weight)
    torch.testing.assert_close(altered(IMAGES).softmax(1), model(IMAGES).softmax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_row_edit_refuses_where_a_relu_follows(dtype):
    """As in SqueezeNet; half precision does not hide it, and the model is left as it is."""
    model = trained(RectifiedToy).to(dtype)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"without anything non-linear in between.*PositionShift"):
        RowEdit(IMAGES.to(dtype), 1.0)(model)
    assert_same_state(before, state_of(model))


def test_row_edit_refuses_weights_that_are_computed():
    """Writing to a parametrised weight would be lost."""
    model = model_in_float64()
    parametrizations.weight_norm(model.head)
    with pytest.raises(ValueError, match="final linear or convolutional layer"):
        RowEdit(IMAGES, 1.0)(model)


def test_position_outside_the_layer_is_an_error():
    """The layer's size and the position are told."""
    altered = PositionShift("relu2", (6, 0))(model_in_float64())
    with pytest.raises(ValueError, match=r"`position` expected a position of 6 x 6, got \(6, 0\)"):
        altered(IMAGES)


def test_missing_layer_is_an_error_with_near_names():
    """When the attack is applied, not when the altered model runs."""
    with pytest.raises(ValueError, match="relu1"):
        PositionShift("relu3")(model_in_float64())


def test_layer_may_be_a_module_of_the_model():
    """It is found in the copy by its name."""
    model = model_in_float64()
    by_module, by_name = (PositionShift(layer)(model)(IMAGES) for layer in (model.relu2, "relu2"))
    torch.testing.assert_close(by_module, by_name, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_worst_case_share_must_be_a_share(share):
    """Neither none nor all of the gradient."""
    with pytest.raises(ValueError, match=r"`share` expected a number in \(0, 1\)"):
        WorstCaseShift("relu2", IMAGES, share)
