"""Networks by name, and weights from files."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.networks import model_options
from lightning_xai.networks import create_classifier, load_weights

DATA = os.environ.get("LIGHTNING_XAI_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="needs the folder $LIGHTNING_XAI_DATA")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("resnet10t", "timm"),
        ("timm:resnet18", "timm"),
        ("torchvision:resnet18", "torchvision"),
        ("googlenet", "torchvision"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet:FutureWarning")
def test_names_are_looked_up_in_timm_then_in_torchvision(name, package):
    """With the number of classes asked for."""
    model = create_classifier(name, 7)
    assert type(model).__module__.startswith(package)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_any_function_can_make_the_network():
    """package.module:function."""
    assert isinstance(create_classifier("torch.nn:Flatten"), nn.Flatten)


def test_an_unknown_name_is_refused_with_near_ones():
    """The whole list would be too long."""
    with pytest.raises(ValueError, match=r"got 'resnet1'. Near names: .*resnet1"):
        create_classifier("resnet1")


class Small(nn.Module):
    """Two layers."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, classes)


def saved(kind, path):
    """The weights of a Small in a file of some kind."""
    state = Small().state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "state_dict":
        torch.save(state, path)
    else:  # as Lightning writes it, with the loss's own entries beside the model's
        torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    return state


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "checkpoint"])
def test_weights_are_loaded(kind, tmp_path):
    """Prefixes that all keys share are stripped."""
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.ckpt")
    state = saved(kind, path)
    model = Small()
    load_weights(model, path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_half_precision_weights_fill_a_float32_model(tmp_path):
    """The model's dtype stays."""
    save_file({key: value.half() for key, value in Small().state_dict().items()}, tmp_path / "w.safetensors")
    model = Small()
    load_weights(model, tmp_path / "w.safetensors")
    assert model.head.weight.dtype == torch.float32


def test_weights_that_do_not_fit_name_the_keys(tmp_path):
    """Shapes and names."""
    saved("safetensors", tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"2 of another shape: head.weight \(3, 2\) instead of \(5, 2\), head.bias"):
        load_weights(Small(5), tmp_path / "w.safetensors")
    other = Small()
    other.extra = nn.Linear(1, 1, bias=False)
    with pytest.raises(ValueError, match=r"1 missing: extra.weight"):
        load_weights(other, tmp_path / "w.safetensors")


def test_pickled_code_is_not_executed(tmp_path):
    """A checkpoint may hold anything; only tensors are read."""

    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_weights(Small(), tmp_path / "bad.ckpt")
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path):
    """Before anything is trained."""
    with pytest.raises(FileNotFoundError, match=r"`--weights` expected a file, got .*none.ckpt"):
        load_weights(Small(), tmp_path / "none.ckpt")


def test_model_options_are_literals_or_strings():
    """And nothing is evaluated."""
    assert model_options(["a=1", "b=(1, 2)", "c=os.getcwd()"]) == {"a": 1, "b": (1, 2), "c": "os.getcwd()"}
    with pytest.raises(ValueError, match="expected name=value, got 'a'"):
        model_options(["a"])


@needs_data
def test_real_weights_fit():
    """SqueezeNet of torchvision, MobileNet by timm's function."""
    weights = Path(DATA) / "weights"
    create_classifier("torchvision:squeezenet1_1", weights=weights / "imagenet_squeezenet1_1.safetensors")
    options = {"variant": "mobilenetv1_100", "channel_multiplier": 0.75, "pad_type": "same", "bn_eps": 1e-3}
    name = "timm.models.efficientnet:_gen_mobilenet_v1"
    create_classifier(name, weights=weights / "imagenet_mobilenetv1_075_fp16.safetensors", **options)
