"""Finding the classifier inside a module that contains it."""

import pytest
import torch
from support import random_images, small_net
from torch import nn

from lightning_xai.trace import Observer


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
        (wrapper if module_call else wrapper.forward)(random_images())
    return wrapper, observer


def test_a_step_that_calls_the_classifier_names_it():
    """validation_step calls self.model(images)."""
    wrapper, observer = observe(lambda self, images: self.model(images), module_call=False)
    assert observer.classifier() is wrapper.model
    assert observer.last_spatial(wrapper.model) is wrapper.model.bn2


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
