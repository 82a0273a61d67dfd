"""The first picture: any form of image, any classifier, right names and probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hostile_images import halves
from matplotlib.figure import Figure
from support import small_net
from torch import nn
from torchvision.transforms import ToTensor, v2
from torchvision.transforms.functional import pil_to_tensor

from lightning_xai import GradCAM, InputGradient, show
from lightning_xai import networks as networks_module
from lightning_xai.scores import log_sigmoid, second_best, sigmoid

STANDARD = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
TO_SMALL = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**STANDARD)])


def heads(figure: Figure) -> list[str]:
    """What stands above the pictures."""
    texts = [text.get_text().replace("\n", " ") for text in figure.texts]
    return texts[texts.index("image") :]


def told(figure: Figure) -> list[str]:
    """What stands beside them, in the first row, under the method."""
    return figure.texts[1].get_text().split("\n")[1:]


def pictures(figure: Figure) -> list[np.ndarray]:
    """What is drawn."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_every_form_of_an_image_gives_one_picture(tmp_path: Path) -> None:
    """A file, PIL's, arrays of bytes and numbers, tensors of bytes, and what the model gets."""
    model, picture = small_net(3), halves()
    picture.save(tmp_path / "a.png")
    array = np.asarray(picture)
    forms: list[Any] = [
        tmp_path / "a.png", str(tmp_path / "a.png"), picture, array, array / 255, pil_to_tensor(picture),
        TO_SMALL(picture), TO_SMALL(picture)[None],
    ]  # fmt: skip
    drawn = [pictures(show(model, one, transform=TO_SMALL)) for one in forms]
    np.testing.assert_array_equal(drawn[0][0], array)
    for one in drawn[1:]:
        np.testing.assert_allclose(one, drawn[0], atol=1)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (7, TypeError, "`image` expected a file, a picture of PIL, an array or a tensor, got int"),
        (np.ones((8, 8, 3)) * 2, ValueError, r"numbers in \[0, 1\]"),
        (torch.rand(2, 3, 8, 8), ValueError, r"one image \(C, H, W\)"),
        ("missing.png", OSError, "missing.png"),
    ],
)
def test_what_is_no_image_is_refused_in_words(image: Any, error: type[Exception], words: str) -> None:
    """Other types, other ranges, several, and a file that is not there."""
    with pytest.raises(error, match=words):
        show(small_net(3), image, transform=TO_SMALL)


def test_classes_stand_side_by_side_with_their_probabilities() -> None:
    """Named where names are known, in the order asked for, each with the map of its own class."""
    model = small_net(3)
    options = {"transform": TO_SMALL, "class_names": ["ant", "bee", "ant"]}
    figure = show(model, halves(), targets=[2, 0], attributions={"cam": GradCAM(), "grad": InputGradient()}, **options)
    assert heads(figure) == ["image", "ant (2)", "ant (0)"]
    assert [text.get_text().split("\n")[0] for text in figure.texts[1:3]] == ["method cam", "method grad"]
    with torch.no_grad():
        found = model.eval()(TO_SMALL(halves())[None]).softmax(1)[0]
    lines = dict(line.rsplit(" ", 1) for line in told(figure))
    assert {name: float(value) for name, value in lines.items()} == pytest.approx(
        {"ant (0)": found[0].item(), "bee": found[1].item(), "ant (2)": found[2].item()}, rel=1e-2
    )
    alone = show(model, halves(), targets=0, **options)
    np.testing.assert_array_equal(pictures(alone)[1], pictures(figure)[4])  # a column after the other
    assert heads(show(model, halves(), targets=second_best, **options)) != heads(show(model, halves(), **options))


def test_all_positive_labels_of_a_multi_label_head_are_shown() -> None:
    """Those of probability 0.5 or more, the most probable first; without one the most probable."""

    class Head(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.conv, self.bias = nn.Conv2d(3, len(logits), 1), torch.tensor(logits)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.bias + 1e-3 * self.conv(images).mean((2, 3))

    for logits, expected in (([1.0, -2.0, 3.0], ["2", "0"]), ([-1.0, -2.0, -3.0], ["0"])):
        method = GradCAM("conv", score=sigmoid)
        figure = show(Head(logits), halves(), transform=TO_SMALL, attributions=method, log_probability=log_sigmoid)
        assert heads(figure)[1:] == expected


def test_a_model_says_how_it_wants_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm by its configuration, also inside another module; ImageNet's way is told; changes are timm's words."""
    said: list[str] = []
    monkeypatch.setattr(networks_module, "rank_zero_info", said.append)
    model = timm.create_model("test_resnet.r160_in1k")
    wanted = networks_module.preprocessing_of(nn.Sequential(model))
    assert wanted.transform(halves()).shape == (3, 160, 160)
    assert wanted.standard == ((0.5,) * 3, (0.5,) * 3)
    assert not said
    assert networks_module.preprocessing_of(nn.Identity()).transform(halves()).shape == (3, 224, 224)
    assert "given as ImageNet's usually are" in said[0]
    changed = networks_module.preprocessing_of(nn.Identity(), input_size=(3, 32, 32), **STANDARD)
    assert changed.transform(halves()).shape == (3, 32, 32)
    assert changed.standard == (STANDARD["mean"], STANDARD["std"])
    assert networks_module.preprocessing_of(nn.Identity(), ToTensor()).standard == ((), ())
    with pytest.raises(TypeError, match="`transform` expected a function"):
        networks_module.preprocessing_of(nn.Identity(), 7)


def test_a_model_of_hugging_face_names_its_classes_and_takes_its_processor() -> None:
    """The logits are found in its output."""
    transformers = pytest.importorskip("transformers")
    names = {0: "ant", 1: "bee", 2: "cat"}
    config = transformers.ResNetConfig(
        hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model = transformers.ResNetForImageClassification(config)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    figure = show(model, halves(), transform=processor, targets=1)
    assert heads(figure) == ["image", "bee"]
    assert pictures(figure)[0].shape == (32, 32, 3)


def test_a_model_of_another_dtype_gets_images_of_its_own() -> None:
    """Half the bits are enough for a picture."""
    assert len(pictures(show(small_net(3).bfloat16(), halves(), transform=TO_SMALL))) == 2


def test_a_notebook_shows_the_figure() -> None:
    """Although pyplot does not know it."""
    assert show(small_net(3), halves(), transform=TO_SMALL)._repr_png_()[:4] == b"\x89PNG"
