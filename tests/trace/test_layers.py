"""Finding the classifier inside a module that contains it, and the last layer that says where things are."""

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, Case, torchvision_vit
from support import Unhappy, assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import GradCAM, InputGradient
from lightning_xai.trace import Observer, last_spatial_layer
from lightning_xai.trace.layers import name_of
from lightning_xai.types import Tokens


class Wrapper(nn.Module):
    """Holds a classifier, and calls it as told."""

    def __init__(self, call) -> None:
        super().__init__()
        self.model, self.other, self.call = small_net(), small_net(5), call

    def forward(self, images):
        return self.call(self, images)


def observe(call, module_call=True):
    """Watch one step, in which the wrapper itself is called or not."""
    wrapper = Wrapper(call)
    with torch.no_grad(), Observer(wrapper) as observer:
        wrapper(random_images()) if module_call else call(wrapper, random_images())
    return wrapper, observer


def test_a_step_that_calls_the_classifier_names_it():
    """validation_step calls self.model(images)."""
    wrapper, observer = observe(lambda self, images: self.model(images), module_call=False)
    assert observer.classifier() is wrapper.model
    assert observer.last_spatial(wrapper.model) is wrapper.model.last


def test_the_outermost_module_that_changes_the_logits_is_taken():
    """validation_step calls self(images): a temperature is part of the classifier."""
    wrapper, observer = observe(lambda self, images: self.model(images) / 2)
    assert observer.classifier() is wrapper


def test_a_wrapper_that_hands_the_logits_on_is_passed_over():
    """A LightningModule whose forward is self.model(images): layers are named as in the model."""
    wrapper, observer = observe(lambda self, images: self.model(images))
    assert observer.classifier() is wrapper.model


def test_a_module_that_gives_probabilities_is_passed_over():
    """Its forward ends in a softmax; the classifier inside gives the logits."""
    wrapper, observer = observe(lambda self, images: self.model(images).softmax(1))
    assert observer.classifier() is wrapper.model


def test_two_classifiers_side_by_side_must_be_told_apart():
    """A teacher and a student; both are named."""
    _, observer = observe(lambda self, images: (self.model(images), self.other(images)))
    with pytest.raises(RuntimeError, match=r"found 'model', 'other'.*Name the right one"):
        observer.classifier()


def test_a_step_without_a_classifier_says_so():
    """The parts are called one by one."""
    _, observer = observe(lambda self, images: self.model.head(images.mean((2, 3)).repeat(1, 3)[:, :8]), False)
    with pytest.raises(RuntimeError, match="found none"):
        observer.classifier()


def test_no_spatial_layer_says_so():
    """Everything is pooled at once."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad(), Observer(model) as observer:
        model(random_images())
    with pytest.raises(ValueError, match=r"`layer=None` expected a layer.*found none"):
        observer.last_spatial(model)


# The last layer whose positions matter


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_the_last_layer_whose_patches_reach_the_logits_is_found(case: Case) -> None:
    """With a class token the last block's first norm, else the last output before the pooling."""
    model, images = case.model_and_images()
    before = state_of(model.train())
    assert name_of(model, last_spatial_layer(model, images)) == case.automatic
    assert_same_state(before, state_of(model))


def test_a_head_that_begins_with_zeros_hides_nothing() -> None:
    """No gradient passes it yet: what counts is which way there is."""
    model = torchvision_vit()
    assert not model.heads.head.weight.any()
    assert name_of(model, last_spatial_layer(model, torch.randn(1, 3, 32, 32))) == "encoder.layers.encoder_layer_1.ln_1"


def test_convolutional_networks_take_one_pass_of_one_image() -> None:
    """Transformers take others of it, for each row and each column of patches once."""
    for model, images, expected in (
        (small_net(), random_images(), [1]),
        (*CASES["timm ViT"].model_and_images(), [1, 4 + 4]),
    ):
        passes: list[int] = []
        model.register_forward_pre_hook(lambda module, args, to=passes: to.append(len(args[0])))
        last_spatial_layer(model, images)
        assert passes == expected
        last_spatial_layer(model, images)
        assert passes == [*expected, 1]


def test_layers_are_found_while_anomalies_are_looked_for() -> None:
    """The search sends NaN backwards; Trainer(detect_anomaly=True) would stop it."""
    model, images = CASES["timm ViT"].model_and_images()
    with torch.autograd.set_detect_anomaly(True):
        assert last_spatial_layer(model, images) is model.blocks[1].norm1
        assert torch.is_anomaly_enabled()


def test_a_step_in_inference_mode_names_the_layer_of_a_transformer() -> None:
    """What was seen are inference tensors; another model beside it has grids of its own."""
    model, images = CASES["timm ViT"].model_and_images()
    module = nn.ModuleDict({"model": model, "teacher": nn.Sequential(nn.Conv2d(3, 17, 15, stride=4), nn.Flatten())})
    with torch.inference_mode(), Observer(module) as observer:
        module["teacher"](images.clone())
        model(images.clone())
        assert observer.last_spatial(model) is model.blocks[1].norm1
        assert torch.is_inference_mode_enabled()


def test_a_search_that_fails_leaves_the_model_as_it_was() -> None:
    """The model raises in the second pass."""
    model, images = CASES["timm ViT"].model_and_images()
    model.head_drop = Unhappy()
    model.train()
    before = state_of(model)
    with torch.no_grad(), Observer(model) as observer:
        model.eval()(images)
    model.train()
    model.head_drop.happy = False
    with pytest.raises(ArithmeticError):
        observer.last_spatial(model)
    assert_same_state(before, state_of(model))


def test_patches_that_reach_no_logits_say_so() -> None:
    """The transformer runs without gradients; the class token alone is used, before any attention."""

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Conv2d(3, 6, 2, stride=2), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, images):
            with torch.no_grad():
                tokens = self.norm(self.embed(images).flatten(2).transpose(1, 2))
            return self.head(F.pad(tokens, (0, 0, 1, 0))[:, 0])

    with pytest.raises(
        ValueError, match=r"`layer=None` expected a layer, called once, with several places .*found none\."
    ):
        last_spatial_layer(Deaf(), random_images())


class Downsampling(nn.Module):
    """The first block of a stage, as in ResNet-50: a pointwise convolution before the stride, and a shortcut beside."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.down = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(6, 6, 1, stride=2)

    def forward(self, hidden):
        return self.down(self.expand(hidden).relu()) + self.shortcut(hidden)


def test_a_branch_of_a_block_does_not_stand_for_the_block() -> None:
    """The last maps of a small image have one place; what one branch had before shows half of what comes there."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), Downsampling(), nn.Flatten())
    assert last_spatial_layer(model, random_images(size=4)) is model[1]
    assert last_spatial_layer(model, random_images(size=8)) is model[2]


def test_of_networks_side_by_side_the_last_layer_of_one_is_found() -> None:
    """What they share lies far before it, and is finer."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.parts = nn.ModuleList([nn.Conv2d(6, 2, 3, stride=2), nn.Conv2d(6, 2, 3, stride=2)])

        def forward(self, images):
            return torch.cat([part(self.stem(images)).mean((2, 3)) for part in self.parts], 1)

    model = Two()
    assert last_spatial_layer(model, random_images()) is model.parts[1]


def test_a_layer_that_is_called_more_than_once_is_not_chosen() -> None:
    """One ReLU serves the features and the pooled ones, or both convolutions."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, images):
            return self.head(self.relu(self.relu(self.conv(images)).mean((2, 3))))

    model, relu = Shared(), nn.ReLU()
    assert last_spatial_layer(model, random_images()) is model.conv
    model = nn.Sequential(nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 3, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert last_spatial_layer(model, random_images()) is model[2]


def test_layers_of_other_models_in_the_step_are_none_of_the_classifiers() -> None:
    """A teacher that runs after it."""
    wrapper, observer = observe(lambda self, images: (self.model(images), self.other(images)))
    assert observer.last_spatial(wrapper.model) is wrapper.model.last


def test_one_position_is_no_place_wherever_the_channels_are() -> None:
    """(N,1,1,D) is no row of D positions."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Unflatten(1, (1, 1, 6)))
    model = nn.Sequential(*model, nn.LayerNorm(6), nn.Flatten())
    assert last_spatial_layer(model, random_images()) is model[0]


def test_layers_of_a_method_are_listed_one_by_one() -> None:
    """Tokens are one layer, and stand among others."""
    module, tokens = nn.Sequential(nn.ReLU()), Tokens("1", (2, 2))
    for layer in (None, "1", module, tokens):
        assert GradCAM(layer).layers() == [layer]
    assert GradCAM(["0", tokens, module]).layers() == ["0", tokens, module]
    assert InputGradient().layers() == []


def test_later_passes_of_other_batches_do_not_count():
    """A callback that works first may run the classifier on fewer images before another looks for the layer."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with Observer(model) as observer, torch.no_grad():
        model(torch.rand(4, 1, 8, 8))
        model(torch.rand(3, 1, 8, 8))
    assert observer.last_spatial(model) is model[1]
