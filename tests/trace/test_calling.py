"""Classifiers that take more than images, or give more than logits."""

from dataclasses import dataclass

import pytest
import torch
from support import assert_same_state, random_images, small_net, state_of
from torch import Tensor, nn
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from lightning_xai import (
    LRP,
    DeepLIFT,
    FromCallable,
    GradCAM,
    InputGradient,
    IntegratedGradients,
    ScoreCAM,
    SmoothGrad,
    explain,
)
from lightning_xai.attribution import AblationCAM, RSIGradCAM, SmoothGradCAMPlusPlus
from lightning_xai.integrity import inspect_model
from lightning_xai.trace import IMAGES, Calling, Capture, Listener, Observer, logits_of, predict, run

LOGITS = torch.tensor([[1.0, 2.0]])
FEATURES = torch.zeros(1, 7)


@dataclass
class Output:
    """As those of Hugging Face: attributes, the logits among them."""

    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        Output(LOGITS, FEATURES),
        (LOGITS, FEATURES),
        [torch.zeros(()), torch.zeros(1, 3, 2, 2), LOGITS],
        {"features": FEATURES, "logits": LOGITS},
        {"main": LOGITS, "features": FEATURES},
        InceptionOutputs(LOGITS, LOGITS + 1),
        GoogLeNetOutputs(LOGITS, LOGITS + 1, LOGITS + 2),
    ],
)
def test_logits_are_found_in_what_models_give(output: object) -> None:
    """By their name, or as the first (N,K) tensor."""
    assert logits_of(output) is LOGITS


def test_where_there_are_no_logits_there_are_none() -> None:
    """Feature maps, numbers of classes, nothing."""
    assert logits_of((torch.zeros(1, 3, 2, 2), torch.ones(1, 2, dtype=torch.int64))) is None
    assert logits_of(None) is None


class Giving(nn.Module):
    """A small network whose output is wrapped."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = small_net(), wrap

    def forward(self, images):
        logits = self.inner(images)
        return self.wrap(logits, images.mean((2, 3)))


WRAPS = {
    "object": (Output, {}),
    "tuple": (lambda logits, features: (logits, features), {}),
    "named": (lambda logits, features: (features, logits), {"logits_of": lambda output: output[1]}),
}
METHODS = {
    "cam": GradCAM("inner.conv2"),
    "auto": GradCAM(),
    "lrp": LRP(),
    "score": ScoreCAM("inner.conv2", batch_size=3),
    "foreign": FromCallable(lambda model, images, targets: torch.autograd.grad(model(images).sum(), images)[0].sum(1)),
}


@pytest.mark.parametrize("name", WRAPS)
def test_outputs_are_understood_by_every_kind_of_method(name: str) -> None:
    """The maps are those of the network whose forward gives the logits alone."""
    wrap, options = WRAPS[name]
    plain, model, images = Giving(lambda logits, features: logits).eval(), Giving(wrap).eval(), random_images()
    expected = explain(plain, images, 1, attributions=METHODS)
    found = explain(model, images, 1, calling=Calling(**options), attributions=METHODS)
    for key, maps in expected.items():
        torch.testing.assert_close(found[key], maps, rtol=0, atol=0)


def test_a_listened_step_gets_the_output_it_would_get() -> None:
    """In its form, without a graph; the trace has the logits."""
    model, images = Giving(Output).eval(), random_images()
    with torch.no_grad(), Listener(model, Capture({"conv": model.inner.conv2})) as listener:
        output = model(images)
    assert isinstance(output, Output)
    assert not output.logits.requires_grad
    assert not output.hidden.requires_grad
    assert torch.equal(listener.traces[0].logits, output.logits)


def test_a_step_that_takes_the_logits_out_names_its_classifier() -> None:
    """As Hugging Face steps do; not the network inside, whose layers have other names."""
    model = nn.ModuleDict({"net": Giving(Output).eval()})
    with torch.no_grad(), Observer(model) as observer:
        _ = model["net"](random_images()).logits + 1
    assert observer.classifier() is model["net"].inner  # whose logits it hands on


def test_integrity_understands_the_same_outputs() -> None:
    """One place for all."""
    images = random_images(8)
    assert inspect_model(Giving(Output).eval(), images).layer == "inner.last"


def test_an_output_without_logits_says_what_to_pass() -> None:
    """And nothing is changed."""
    model = Giving(lambda logits, features: {"one": logits[:, :, None]}).eval()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"got dict. Wrap it.*or say where they are: `Calling\(logits_of="):
        explain(model, random_images(), attributions=InputGradient())
    assert_same_state(before, state_of(model))


# Other arguments


class WithMetaData(nn.Module):
    """Its logits depend on a number that comes with each image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, images, meta, scale=1.0):
        return self.net(images * meta[:, None, None, None]) * scale


class Bound(nn.Module):
    """The same for one image, whose number is known."""

    def __init__(self, meta: Tensor) -> None:
        super().__init__()
        self.inner, self.meta = WithMetaData(), meta

    def forward(self, images):
        return self.inner(images, self.meta.expand(len(images)), 2.0)


META = torch.tensor([1.0, -2.0, 0.5, 3.0])
BASELINE = torch.zeros(())
WITH_ROWS = {
    "cam": GradCAM("net.conv2"),
    "auto": GradCAM(),
    "gradient": InputGradient(),
    "score": ScoreCAM("net.conv2", batch_size=3),
    "ablation": AblationCAM("net.conv2", batch_size=3),
    "paths": IntegratedGradients(baseline=BASELINE, n_steps=3, batch_size=5),
    "smooth": SmoothGrad(n_samples=3, batch_size=5),
    "rsi": RSIGradCAM("net.conv2", n_steps=3, baseline=BASELINE, batch_size=5),
    "smooth cam": SmoothGradCAMPlusPlus("net.conv2", n_samples=3),
    "deeplift": DeepLIFT(baseline=BASELINE),
    "lrp": LRP(),
    "foreign": METHODS["foreign"],
}


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_of_other_arguments_stay_with_their_images(name: str) -> None:
    """Each image's map is that of a classifier of images alone that has the image's number inside."""
    model, images, method = WithMetaData().eval(), random_images(), WITH_ROWS[name]
    calling = Calling((META,), {"scale": 2.0})
    found = explain(model, images, 1, calling=calling, attributions=method)
    for i, meta in enumerate(META):
        bound = Bound(meta[None]).eval()
        bound.inner.load_state_dict(model.state_dict())
        inner = calling_one(method)
        expected = explain(bound, images[i : i + 1], 1, attributions=inner)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-6)


def calling_one(method):
    """The method with its layer's name in the wrapped model."""
    import dataclasses

    layer = getattr(method, "layer", None)
    return dataclasses.replace(method, layer=f"inner.{layer}") if isinstance(layer, str) else method


def test_what_was_heard_is_repeated() -> None:
    """A trace runs other images, and other numbers of them, with the arguments of the step."""
    model, images = WithMetaData().eval(), random_images()
    with torch.inference_mode(), Listener(model, Capture(image_gradient=True)) as listener:
        model(meta=META.clone(), images=images.clone(), scale=2.0)
    trace, rows = listener.traces[0], torch.tensor([3, 0, 3])
    with torch.no_grad():
        assert torch.equal(trace.logits, model(images, META, 2.0))
        assert torch.equal(trace.predict(images + 1), model(images + 1, META, 2.0))
        assert torch.equal(trace.predict(images[rows], rows=rows), model(images[rows], META[rows], 2.0))
        assert torch.equal(trace.rerun(images[rows], rows=rows).logits, model(images[rows], META[rows], 2.0))
    with pytest.raises(ValueError, match="`rows` expected the image of the trace that each of the 3 images was made"):
        trace.predict(images[rows])


def test_an_observer_knows_how_the_classifier_was_called() -> None:
    """For the pass of the first batch, which nobody could hear yet."""
    module = nn.ModuleDict({"model": WithMetaData().eval()})
    images = random_images()
    with torch.no_grad(), Observer(module) as observer:
        expected = module["model"](images, scale=2.0, meta=META)
    model = module["model"]
    assert observer.classifier() is model
    assert observer.last_spatial(model) is model.net.last
    assert torch.equal(predict(model, observer.images_of(model), observer.calling_of(model)), expected)


def test_images_may_stand_anywhere_among_the_arguments() -> None:
    """By keyword, inside a dict, after others; without a place they come first."""
    images = random_images()
    assert Calling((1,)).given(images) == ((images, 1), {})
    assert Calling((1, IMAGES)).given(images) == ((1, images), {})
    args, kwargs = Calling(kwargs={"batch": {"pixels": IMAGES, "n": 2}}).given(images)
    assert args == ()
    assert kwargs == {"batch": {"pixels": images, "n": 2}}


def test_a_trace_of_a_dict_batch_is_heard() -> None:
    """A forward that takes the batch as the loader gives it."""

    class OfBatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, batch):
            return self.net(batch["image"])

    model, images = OfBatches().eval(), random_images()
    with torch.no_grad(), Listener(model, Capture(image_gradient=True)) as listener:
        expected = model({"image": images, "label": torch.zeros(4)})
    assert torch.equal(listener.traces[0].logits, expected)
    assert torch.equal(listener.traces[0].rerun(images).logits, expected)
    assert run(model, images, Capture(), Calling(({"image": IMAGES},))).logits.shape == (4, 3)
