"""Comparison with a trusted model, and its fingerprint: verdicts, benign changes, files that are not what they say."""

import copy
import json
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from integrity.toys import RectifiedToy, Toy, data, one_against_rest, trained
from safetensors.torch import save_file
from support import Unhappy, assert_same_state, state_of
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_xai import GradCAM, InputGradient
from lightning_xai.attribution import Random
from lightning_xai.integrity import Digest, Fingerprint, Verdict, center_logits, compare_models
from lightning_xai.integrity.evidence import sketch
from lightning_xai.integrity.fingerprint import FORMAT, _checksum, _read
from papers.logit_shift.attacks import (
    EnergyShift,
    NetworkShift,
    PositionShift,
    RandomShift,
    RowEdit,
    TriggeredShift,
    UniformShift,
)

IMAGES = data(32)[0]


def fine_tuned(model, steps=5):
    """Trained a little further."""
    images, labels = data(64, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
    return model.eval()


def folded(model):
    """The first BatchNorm in the weights of its convolution."""
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    return model


def other_bias(model):
    """A constant on all logits: no gradient knows of it."""
    model.head.bias.data += 100.0
    return model


def rounded(model):
    """Weights that were kept in bfloat16 and are loaded into float32."""
    return model.bfloat16().float()


BENIGN = {
    "same": lambda model: model,
    "training mode": lambda model: model.train(),
    "float64": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "float16": lambda model: model.half(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "folded BatchNorm": folded,
    "constant": other_bias,
}
SHIFTS = {
    "position": PositionShift("relu2"),
    "weak position": PositionShift("relu2", strength=0.003),
    "uniform": UniformShift("relu2", 0.1),
    "random": RandomShift("relu2", 0.01),
    "rows": RowEdit(IMAGES, 0.1),
    "energy": EnergyShift(strength=0.01),
    "network": NetworkShift(Toy().eval(), 0.1),
    "inner layer": UniformShift("relu1", 0.1),
    "trigger that a probe carries": TriggeredShift(UniformShift("relu2"), IMAGES[3, :, :2, :2]),
    "repaired rows": lambda model: center_logits(RowEdit(IMAGES, 10.0)(model), IMAGES),
}
CHANGES = {
    "rounded weights": rounded,  # the pass computed in float32: it explains less than was changed
    "fine-tuned": fine_tuned,
    "untrained": lambda model: Toy().eval(),
    "other loss": lambda model: trained(loss=one_against_rest),
    "fine-tuned and shifted": lambda model: PositionShift("relu2")(fine_tuned(model)),
}
VERDICTS = {
    **{name: (change, Verdict.UNCHANGED) for name, change in BENIGN.items()},
    **{name: (change, Verdict.LOGIT_SHIFT) for name, change in SHIFTS.items()},
    **{name: (change, Verdict.CHANGED) for name, change in CHANGES.items()},
}


@pytest.mark.parametrize(("change", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_against_a_fingerprint(change, verdict):
    """Benign changes pass, shifts are told, everything else is a change and no more."""
    fingerprint = Fingerprint.of(trained(), IMAGES)
    assert fingerprint.compare(change(trained()), IMAGES).verdict is verdict


@pytest.mark.parametrize("model", [RectifiedToy, Toy], ids=["ReLU behind the head", "untrained"])
def test_a_reference_tells_where_the_check_without_one_cannot(model):
    """Heads that share a lot are compared as any other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model().eval()
    fingerprint = Fingerprint.of(model, IMAGES, layer="relu2")
    assert fingerprint.compare(model, IMAGES).verdict is Verdict.UNCHANGED
    assert (
        fingerprint.compare(PositionShift("relu2")(model), IMAGES, layer="model.relu2").verdict is Verdict.LOGIT_SHIFT
    )


def test_a_trigger_that_no_probe_carries_is_found_in_the_code_only():
    """The behaviour on the probes is that of the trusted model, the digests are not: never called unchanged."""
    altered = TriggeredShift(UniformShift("relu2"), torch.full((3, 2, 2), 9.0))(trained())
    comparison = Fingerprint.of(trained(), IMAGES).compare(altered, IMAGES)
    assert comparison.verdict is Verdict.OTHER_CODE
    assert {"modules", "code"} <= set(comparison.differing)
    assert str(comparison).startswith("the code differs; its maps on the probes do not")


def test_figures_of_a_shift_are_those_of_its_gradient():
    """T = K mean_ij sum_k A_k: what it adds to the mean logit, and its constant gradient K / Z."""
    model = trained().double()
    images = IMAGES.double()
    comparison = compare_models(UniformShift("relu2", 2.0)(model), model, images)
    activations, logits = (
        model.relu2(model.conv2(F.max_pool2d(model.relu1(model.bn1(model.conv1(images))), 2))),
        model(images),
    )
    shift = 2.0 * activations.mean((2, 3)).sum(1)
    size = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    torch.testing.assert_close(comparison.shifts, ((shift - shift.median()) / size).detach())
    assert comparison.residuals.max() < 1e-12
    # every row's centred gradient is W_c - mean W, at all of the 36 positions where the ReLU's output lies
    rest = (model.head.weight - model.head.weight.mean(0))[logits.argmax(1)].norm(dim=1)
    exact = 2.0 * 12**0.5 / rest.detach()
    assert (comparison.shift_gradients / exact).median().item() == pytest.approx(1, abs=0.3)  # a sketch's precision


def test_layer_is_found_behind_the_prefix_of_a_wrapper():
    """By the end of its name, though it is not the last with a spatial output."""
    fingerprint = Fingerprint.of(trained(), IMAGES, layer="relu1")
    comparison = fingerprint.compare(nn.Sequential(trained()), IMAGES)
    assert comparison.layer == "0.relu1"
    assert comparison.verdict is Verdict.UNCHANGED


def test_reference_and_fingerprint_give_the_same_figures():
    """The reference is compared by its fingerprint."""
    altered = PositionShift("relu2", strength=0.1)(trained())
    by_model = compare_models(altered, trained(), IMAGES)
    assert by_model.figures == Fingerprint.of(trained(), IMAGES).compare(altered, IMAGES).figures


def test_configured_maps_are_compared_under_both_scores():
    """Raw ones move, zero-sum ones do not; a map that is made at the image sees what the layer does not."""
    methods = {"cam": GradCAM(), "gradient": InputGradient()}
    altered = EnergyShift(strength=5.0)(trained())
    comparison = compare_models(altered, trained(), IMAGES, attributions=methods)
    assert comparison.raw_agreement["gradient"].median() < 0.9
    assert comparison.zero_sum_agreement["gradient"].median() > 0.999
    assert comparison.raw_agreement["cam"].median() > 0.999


class OneHotLie(torch.autograd.Function):
    """The identity, whose gradient is that of the first class wherever one class is explained."""

    @staticmethod
    def forward(ctx, logits):
        """The logits."""
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        """Another class's where there is one class only, else what it is to be."""
        one = (gradient != 0).sum(1, keepdim=True) == 1
        return torch.where(one, F.one_hot(torch.zeros(len(gradient)).long(), gradient.shape[1]) * 1.0, gradient)


class Lying(Toy):
    """The toy with a backward pass of its own."""

    def forward(self, images):
        """The toy's logits."""
        return OneHotLie.apply(super().forward(images))


def with_lying_backward(model):
    """The same weights, another backward."""
    altered = Lying().eval()
    altered.load_state_dict(model.state_dict())
    return altered


def test_a_backward_that_lies_where_one_class_is_explained_is_a_shift_and_its_code_is_named():
    """Logits and zero-sum maps are the same; users' raw maps are swept by the path by which they are made."""
    comparison = Fingerprint.of(trained(), IMAGES).compare(with_lying_backward(trained()), IMAGES)
    assert comparison.verdict is Verdict.LOGIT_SHIFT
    assert comparison.figures["logit shift"] == 0
    assert "autograd functions" in comparison.differing


def test_weights_hidden_among_buffers_do_not_widen_the_tolerance():
    """The only parameter left is exact in bfloat16; the pass computes in float32 all the same."""

    def hidden(model):
        model.marker = nn.Parameter(torch.ones(1))
        for module in model.modules():
            for name, value in [*module.named_parameters(recurse=False)]:
                if value is not model.marker:
                    delattr(module, name)
                    module.register_buffer(name, value.detach())
        return model

    plain = Fingerprint.of(trained(), IMAGES)
    first, second = (plain.compare(one, IMAGES) for one in (trained(), hidden(trained())))
    assert second.gradient_tolerance == pytest.approx(first.gradient_tolerance)


def test_sketches_keep_lengths_and_distances():
    """To the deviation of sqrt(2 / 128) that is stated, over 500 vectors, and without bias."""
    vectors = torch.randn(500, 3, 40, 5, generator=torch.Generator().manual_seed(1))
    ratios = sketch(vectors).square().sum(1) / vectors.square().sum((1, 2, 3))
    assert ratios.mean().item() == pytest.approx(1, abs=0.03)
    assert ratios.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.2)
    torch.testing.assert_close(sketch(vectors[:1] - vectors[1:2]), sketch(vectors[:1]) - sketch(vectors[1:2]))


def test_saved_fingerprint_is_small_and_gives_the_same_comparison(tmp_path):
    """After a way through a file."""
    fingerprint = Fingerprint.of(trained(), IMAGES, attributions={"cam": GradCAM()})
    fingerprint.save(tmp_path / "trusted.safetensors")
    assert (tmp_path / "trusted.safetensors").stat().st_size < 400_000
    loaded = Fingerprint.load(tmp_path / "trusted.safetensors")
    assert (loaded.layer, loaded.layer_shape, loaded.digest, loaded.images) == (
        fingerprint.layer,
        fingerprint.layer_shape,
        fingerprint.digest,
        fingerprint.images,
    )
    altered = UniformShift("relu2", 0.1)(trained())
    first, second = (one.compare(altered, IMAGES, attributions={"cam": GradCAM()}) for one in (fingerprint, loaded))
    assert first.figures == second.figures
    assert str(first) == str(second)


@pytest.fixture
def saved(tmp_path):
    """A fingerprint's file."""
    path = tmp_path / "trusted.safetensors"
    Fingerprint.of(trained(), IMAGES).save(path)
    return path


@pytest.mark.parametrize("kept", [0, 5, 500, 5000])
def test_truncated_file_is_an_error(saved, kept):
    """Wherever it ends."""
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"trusted.safetensors', truncated or corrupted"):
        Fingerprint.load(saved)


def test_altered_contents_are_an_error(saved):
    """One bit of the last tensor."""
    contents = bytearray(saved.read_bytes())
    contents[-3] ^= 1
    saved.write_bytes(contents)
    with pytest.raises(ValueError, match="whose contents were altered"):
        Fingerprint.load(saved)


def test_altered_description_is_an_error(saved):
    """Another digit in the digest of the probe images."""
    digest = Fingerprint.load(saved).images.encode()
    other = (b"0" if digest[:1] != b"0" else b"1") + digest[1:]
    saved.write_bytes(saved.read_bytes().replace(digest, other))
    with pytest.raises(ValueError, match="whose contents were altered"):
        Fingerprint.load(saved)


def test_other_files_are_errors(tmp_path):
    """Weights, and nothing at all."""
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"expected a file of Fingerprint.save, got 'weights.safetensors'"):
        Fingerprint.load(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Fingerprint.load(tmp_path / "nothing.safetensors")


FORGED = {
    "no digest": (lambda about, tensors: about.pop("digest"), "no proper `digest`"),
    "digest of other parts": (lambda about, tensors: about["digest"].pop("code"), "no proper `digest`"),
    "layer that is a number": (lambda about, tensors: about.update(layer=3), "no proper `layer`"),
    "shape of two numbers": (lambda about, tensors: about.update(layer_shape=[1, 2]), "no proper `layer_shape`"),
    "tolerance for anything": (lambda about, tensors: about.update(eps=10.0), "no proper `eps`"),
    "no logits": (lambda about, tensors: tensors.pop("logits"), r"no logits \(N,K\)"),
    "NaN logits": (lambda about, tensors: tensors["logits"].fill_(torch.nan), "in `logits` that are not finite"),
    "integer logits": (lambda about, tensors: tensors.update(logits=tensors["logits"].long()), "not finite"),
    "sketches of others": (lambda about, tensors: tensors.update(common=tensors["common"][:3]), "no `common` for each"),
    "no maps": (lambda about, tensors: tensors.pop("raw Grad-CAM"), r"maps of \['HiResCAM'\]"),
    "flat maps": (lambda about, tensors: tensors.update({"raw HiResCAM": torch.zeros(32)}), "no `raw HiResCAM`"),
}


@pytest.mark.parametrize(("forge", "message"), FORGED.values(), ids=FORGED)
def test_forged_fingerprints_are_errors(saved, forge, message):
    """With a checksum that fits: anybody can compute it."""
    about, tensors = _read(saved)
    forge(about, tensors)
    text, tensors = json.dumps(about), {name: one.contiguous() for name, one in tensors.items()}
    save_file(tensors, saved, metadata={"format": FORMAT, "about": text, "checksum": _checksum(text, tensors)})
    with pytest.raises(ValueError, match=message):
        Fingerprint.load(saved)


def wider():
    """Another architecture: more channels at the layer."""
    model = Toy().eval()
    model.conv2, model.head = nn.Conv2d(8, 20, 3, padding=1), nn.Linear(20, 4)
    return model


BAD_INPUT = {
    "classes": (lambda: Toy(7).eval(), {}, "expected logits of 4 classes as of the fingerprint, got 7"),
    "architecture": (wider, {}, r"output of shape \(12, 6, 6\).*got \(20, 6, 6\) of 'relu2': another architecture"),
    "layer": (trained, {"layer": "relu1"}, r"got \(8, 12, 12\) of 'relu1'"),
    "missing layer": (trained, {"layer": "relu9"}, "Near names"),
    "methods": (trained, {"attributions": {"cam": GradCAM()}}, r"expected the methods of the fingerprint, \[\], got"),
    "one logit": (lambda: Toy(1).eval(), {}, "at least 2 classes"),
}


@pytest.mark.parametrize(("model", "options", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_what_cannot_be_compared_is_an_error(model, options, message):
    """Each with its own words."""
    with pytest.raises(ValueError, match=message):
        Fingerprint.of(trained(), IMAGES).compare(model(), IMAGES, **options)


def test_other_probes_are_an_error():
    """Other values, or the same in another dtype."""
    fingerprint = Fingerprint.of(trained(), IMAGES)
    for images in (IMAGES + 1e-6, IMAGES.double(), IMAGES[:8]):
        with pytest.raises(ValueError, match="expected the 32 probe images of the fingerprint, got others"):
            fingerprint.compare(trained(), images)


def test_probes_may_lie_in_another_memory_format():
    """Their values are digested, not their strides."""
    images = IMAGES.to(memory_format=torch.channels_last)
    assert Fingerprint.of(trained(), IMAGES).compare(trained(), images).verdict is Verdict.UNCHANGED


def test_methods_without_a_score_are_an_error():
    """Random maps have nothing to compare."""
    with pytest.raises(ValueError, match="methods that explain a score, got Random"):
        Fingerprint.of(trained(), IMAGES, attributions={"random": Random()})


def test_names_of_the_maps_at_the_layer_are_taken():
    """Two maps of one name could not be told apart."""
    with pytest.raises(ValueError, match=r"expected other names than \['HiResCAM'\]"):
        Fingerprint.of(trained(), IMAGES, attributions={"HiResCAM": GradCAM()})


def test_logits_that_are_not_finite_are_an_error():
    """NaN compares as nothing, and would pass for unchanged."""
    model = trained()
    model.head.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="finite logits"):
        Fingerprint.of(trained(), IMAGES).compare(model, IMAGES)


def test_models_are_left_as_they_are():
    """After success in training mode and after an error."""
    model = nn.Sequential(trained(), Unhappy()).train()
    before = state_of(model)
    fingerprint = Fingerprint.of(model, IMAGES, layer="0.relu2")
    fingerprint.compare(model, IMAGES)
    assert_same_state(before, state_of(model))
    model[1].happy = False
    unhappy = state_of(model)
    with pytest.raises(ArithmeticError):
        fingerprint.compare(model, IMAGES)
    assert_same_state(unhappy, state_of(model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_comparison_works_where_gradients_are_off(mode):
    """As in validation."""
    model, altered = trained(), PositionShift("relu2")(trained())
    with mode():
        found = Fingerprint.of(model, IMAGES).compare(altered, IMAGES)
    assert found.verdict is Verdict.LOGIT_SHIFT


def test_a_comparison_costs_one_forward_and_three_sweeps_of_the_head():
    """For 32 images, when the layer is known."""
    model = trained()
    fingerprint = Fingerprint.of(model, IMAGES)
    sizes = []
    model.conv1.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with mock.patch("torch.autograd.grad", side_effect=torch.autograd.grad) as sweeps:
        fingerprint.compare(model, IMAGES)
    assert sizes == [32]
    assert [tuple(call.args[1].shape) for call in sweeps.call_args_list] == [(32, 12, 6, 6)] * 3


def shadowed(model):
    """Another forward on the instance."""
    model.forward = lambda images: images
    return model


def hooked(model):
    """A hook that changes what the head gives."""
    model.head.register_forward_hook(lambda module, args, output: output + 1)
    return model


def settled(model):
    """Another setting of a layer."""
    model.bn1.eps = 1e-2
    return model


def counted(model):
    """Other statistics."""
    model.bn1.running_mean += 1
    return model


PARTS = {
    "parameters": other_bias,
    "buffers": counted,
    "modules": settled,
    "code by a forward": shadowed,
    "hooks": hooked,
}


@pytest.mark.parametrize(("part", "change"), PARTS.items(), ids=PARTS)
def test_digest_names_the_part_that_differs(part, change):
    """And that part alone."""
    assert Digest.of(trained()).differences(Digest.of(change(trained()))) == (part.partition(" ")[0],)


def test_digest_of_a_copy_in_another_memory_format_is_the_same():
    """Where and how the numbers lie does not matter."""
    other = copy.deepcopy(trained()).train().to(memory_format=torch.channels_last)
    assert Digest.of(other) == Digest.of(trained())
