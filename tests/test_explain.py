"""The front door: what explain() takes, gives, refuses, and leaves alone."""

import inspect

import pytest
import torch
from support import SmallNet, Unhappy, assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import (
    CAM,
    CLRP,
    LRP,
    SGLRP,
    Attribution,
    DeepLIFT,
    FromCallable,
    GradCAM,
    GradCAMPlus,
    GradCAMPlusPlus,
    GuidedGradCAM,
    GuidedGradient,
    HiResCAM,
    InputGradient,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
    explain,
)
from lightning_xai.attribution import (
    AblationCAM,
    CenteredGaussian,
    Edges,
    EigenCAM,
    FakeCAM,
    FinerCAM,
    NormalizedCLRP,
    Random,
    RSIGradCAM,
    Shuffled,
    SmoothGradCAMPlusPlus,
)
from lightning_xai.attribution.paths import trapezoid
from lightning_xai.baselines import black
from lightning_xai.scores import post_softmax, pre_softmax, second_best

COLORS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
EVERY = {
    "gradcam": GradCAM("conv2"),
    "gradcam auto": GradCAM(),
    "gradcam plus": GradCAMPlus("relu"),
    "gradcam plus plus": GradCAMPlusPlus(("conv1", "conv2")),
    "input gradient": InputGradient(),
    "guided gradient": GuidedGradient(),
    "random": Random(),
    "gaussian": CenteredGaussian(),
    "fake cam": FakeCAM(),
    "edges": Edges(),
    "shuffled": Shuffled(GradCAM("conv2")),
    "cam": CAM(),
    "hirescam": HiResCAM("conv2"),
    "layercam": LayerCAM("conv2"),
    "xgradcam": XGradCAM("conv2"),
    "smooth gradcam plus plus": SmoothGradCAMPlusPlus("conv2", n_samples=3),
    "scorecam": ScoreCAM("conv2"),
    "ablation cam": AblationCAM("conv2"),
    "eigen cam": EigenCAM("conv2"),
    "finer cam": FinerCAM("conv2"),
    "rsi gradcam": RSIGradCAM("conv2", n_steps=3, **COLORS),
    "guided gradcam": GuidedGradCAM("conv2"),
    "input x gradient": InputXGradient(),
    "lrp": LRP(),
    "clrp": CLRP(),
    "sglrp": SGLRP(),
    "normalized clrp": NormalizedCLRP.against_negated_target(),
    "deeplift": DeepLIFT(**COLORS),
    "smoothgrad": SmoothGrad(n_samples=3),
    "integrated gradients": IntegratedGradients(n_steps=3, **COLORS),
    "foreign": FromCallable(lambda model, images, targets: images * model(images).sum(1)[:, None, None, None]),
}


def every_kind_of_method(kind: type[Attribution] = Attribution) -> set[type[Attribution]]:
    """All attributions of the package that can be created."""
    below = {one for child in kind.__subclasses__() for one in every_kind_of_method(child) | {child}}
    return {one for one in below if one.__module__.startswith("lightning_xai") and not inspect.isabstract(one)}


def test_the_invariants_are_checked_for_every_attribution():
    """A new method cannot be forgotten in the table above."""
    assert {type(method) for method in EVERY.values()} == every_kind_of_method()


def frozen(model):
    """All parameters frozen."""
    return model.requires_grad_(False)


def with_gradients(model):
    """In the middle of accumulating training gradients."""
    model(random_images()).sum().backward()
    return model


@pytest.mark.parametrize("prepare", [nn.Module.eval, nn.Module.train, frozen, with_gradients])
@pytest.mark.parametrize("name", EVERY)
def test_model_and_process_are_as_before(name, prepare):
    """Modes, gradients, parameters, buffers, hooks, forward, random state; the images too; also a second time."""
    model, images = prepare(small_net()), random_images()
    before, copies = state_of(model), images.clone()
    for _ in range(2):
        explain(model, images, attributions=EVERY[name])
        assert_same_state(before, state_of(model))
    assert torch.equal(images, copies)
    assert not images.requires_grad


@pytest.mark.parametrize("where", ["before the layer", "after the layer"])
@pytest.mark.parametrize("name", EVERY)
def test_model_and_process_are_as_before_after_an_exception_midway(name, where):
    """The model's own error comes out, and nothing stays behind."""
    model, images, unhappy = small_net(), random_images(), Unhappy()
    if where == "before the layer":
        model.bn1 = nn.Sequential(unhappy, model.bn1)
    else:
        model.head = nn.Sequential(unhappy, model.head)
    model.train()
    unhappy.happy = False
    before = state_of(model)
    with pytest.raises(ArithmeticError, match="unhappy"):
        explain(model, images, attributions=EVERY[name])
    assert_same_state(before, state_of(model))


def test_model_is_as_before_after_an_error_in_the_score():
    """Errors on the way back leave no hooks on the graph or the modules either."""
    model = small_net()
    before = state_of(model)

    def broken(logits, targets):
        raise ArithmeticError("broken score")

    with pytest.raises(ArithmeticError, match="broken score"):
        explain(model, random_images(), attributions=EVERY | {"a": GuidedGradient(score=broken)})
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("name", EVERY)
def test_maps_do_not_depend_on_the_batch(name):
    """N images at once give what they give one by one, at image size, in float32, without a graph."""
    model, images = small_net(), random_images(4, size=10)
    together = explain(model, images, attributions=EVERY[name])
    alone = torch.cat([explain(model, image[None], attributions=EVERY[name]) for image in images])
    assert together.shape == (4, 10, 10)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", EVERY)
def test_maps_are_the_same_in_every_grad_mode(name, context):
    """Trainer.validate runs in inference mode, fit's validation without gradients, notebooks with."""
    model, images = small_net(), random_images()
    expected = explain(model, images, attributions=EVERY[name])
    with context():
        found = explain(model, images.clone(), attributions=EVERY[name])
        assert not found.is_inference()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_all_methods_of_one_pass_share_it():
    """Counted at the first convolution; a method with layer=None adds a look at one image."""
    model, images, seen = small_net(), random_images(5), []
    model.conv1.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    several = ("auto", "smooth", "score", "ablation", "rsi", "integrated", "foreign", "lrp", "clrp", "deeplift")
    named = {name: method for name, method in EVERY.items() if not any(one in name for one in several)}
    del named["cam"]  # it looks for the last spatial layer, too
    assert len(named) > 12
    explain(model, images, attributions=named)
    assert seen == [5]
    explain(model, images, attributions={**named, "auto": EVERY["gradcam auto"]})
    assert seen == [5, 1, 5]


@pytest.mark.parametrize(("name", "passes"), [("smooth", 3), ("integrated", 3), ("trapezoid", 4)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_path_methods_take_no_pass_of_the_images_for_known_classes(name, passes, batch_size):
    """And the same maps as with it, which other methods ask for."""
    methods = {
        "smooth": SmoothGrad(n_samples=3, batch_size=batch_size),
        "integrated": IntegratedGradients(n_steps=3, batch_size=batch_size),
        "trapezoid": IntegratedGradients(n_steps=3, rule=trapezoid, batch_size=batch_size),
    }
    model, images, seen = small_net(), random_images(4), []
    beside = explain(model, images, 1, attributions={name: methods[name], "gradient": InputGradient()})
    model.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    maps = explain(model, images, 1, attributions=methods[name])
    assert sum(seen) == passes * len(images)
    assert torch.equal(maps, beside[name])


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [
        (lambda: small_net(), 3, r"classes in \[0, 2\], got 3"),
        (lambda: small_net(), torch.tensor([0, 1, -1, 2]), r"classes in \[0, 2\], got -1"),
        (lambda: small_net(), [0, 1], r"each of the 4 images, got shape \(2,\)"),
        (lambda: nn.Sequential(small_net(), nn.Softmax(1)), 1, "expected to give logits, got probabilities"),
        (lambda: nn.Sequential(small_net(), nn.Threshold(torch.inf, torch.nan)), 1, r"finite.*images \[0, 1, 2, 3\]"),
    ],
)
@pytest.mark.parametrize("method", [SmoothGrad(n_samples=2), IntegratedGradients(n_steps=2)])
def test_the_first_pass_is_looked_at_whichever_it_is(method, make, targets, message):
    """Also where that of the images themselves is never made."""
    model = make()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        explain(model, random_images(4), targets, attributions=method)
    assert_same_state(before, state_of(model))


def test_methods_with_one_score_share_one_backward():
    """Three CAMs of one score and layer take one backward pass; another score takes another."""
    model, images = small_net(), random_images()
    passes = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            passes.append(1)
            return gradient

    model.head.register_forward_hook(lambda module, args, output: Counted.apply(output))
    methods = {str(kind): kind("conv2") for kind in (GradCAM, GradCAMPlus, GradCAMPlusPlus)}
    explain(model, images, attributions=methods)
    assert len(passes) == 1
    explain(model, images, attributions=methods | {"raw": GradCAM("conv2", score=pre_softmax)})
    assert len(passes) == 3


def test_a_dict_gives_a_dict_with_what_each_method_gives_alone():
    """In the order given."""
    model, images = small_net(), random_images()
    maps = explain(model, images, second_best, attributions=EVERY)
    assert list(maps) == list(EVERY)
    for name, method in EVERY.items():
        alone = explain(model, images, second_best, attributions=method)
        torch.testing.assert_close(maps[name], alone, rtol=1e-5, atol=1e-7)


def test_score_replaces_that_of_every_method():
    """And None leaves each its own."""
    model, images = small_net(), random_images()
    found = explain(model, images, attributions=GradCAM("conv2"), score=post_softmax)
    expected = explain(model, images, attributions=GradCAM("conv2", score=post_softmax))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.allclose(found, explain(model, images, attributions=GradCAM("conv2")))


def test_score_replaces_that_of_a_method_inside_another():
    """A shuffled map explains what the map explains."""
    model, images = small_net(), random_images()
    found = explain(model, images, attributions=Shuffled(GradCAM("conv2")), score=post_softmax)
    expected = explain(model, images, attributions=Shuffled(GradCAM("conv2", score=post_softmax)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["gradcam", "gradcam plus plus", "guided gradient", "integrated gradients", "smoothgrad"]
)
def test_maps_can_be_put_into_a_loss(name):
    """With create_graph their derivative with respect to a weight is that of finite differences."""
    model, images = small_net().double(), random_images().double()
    method, weight = EVERY[name], model.conv2.weight
    (found,) = torch.autograd.grad(
        explain(model, images, 1, attributions=method, create_graph=True).square().sum(), weight
    )
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def moved(step):
        with torch.no_grad():
            weight.add_(step * direction)
        value = explain(model, images, 1, attributions=method).square().sum()
        with torch.no_grad():
            weight.sub_(step * direction)
        return value

    expected = (moved(1e-7) - moved(-1e-7)) / 2e-7
    torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-4, atol=1e-8)


def test_maps_have_no_graph_unless_asked():
    """Also where gradients are on and the images require them."""
    images = random_images().requires_grad_()
    assert not explain(small_net(), images, attributions=InputGradient()).requires_grad
    assert explain(small_net(), images, attributions=InputGradient(), create_graph=True).requires_grad


def test_the_last_spatial_layer_is_found():
    """conv2 is followed by bn2 and a ReLU, whose output is the last with more than one position."""
    model, images = small_net(), random_images()
    found = explain(model, images, attributions=GradCAM())
    torch.testing.assert_close(found, explain(model, images, attributions=GradCAM("last")))


def test_bfloat16_models_give_float32_maps():
    """Maps of a bfloat16 model resemble those of the float32 one."""
    model, images = small_net(), random_images()
    expected = explain(model, images, 1, attributions=GradCAM("conv2", relu=False))
    found = explain(model.bfloat16(), images.bfloat16(), 1, attributions=GradCAM("conv2", relu=False))
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.98


def test_autocast_is_kept():
    """Under autocast the pass runs in bfloat16 and the maps resemble those of float32."""
    model, images = small_net(), random_images()
    expected = explain(model, images, 1, attributions=GradCAM("conv2", relu=False))
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model, images, 1, attributions=GradCAM("conv2", relu=False))
    assert torch.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.98
    assert not torch.equal(found, expected)


def test_autocast_is_that_of_later_passes_too():
    """Passes along a path run in the precision of the first; the maps are computed in full precision."""
    model, kinds = small_net(), []
    model.conv1.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model, random_images(), 1, attributions=EVERY["integrated gradients"])
    assert len(kinds) > 2
    assert set(kinds) == {torch.bfloat16}
    assert found.dtype == torch.float32


def gives(values):
    """A model that answers every batch with the same values."""

    class Gives(nn.Module):
        def forward(self, images):
            return values

    return Gives()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": len}, TypeError, r"`model` expected a torch.nn.Module, got builtin"),
        ({"images": [1]}, TypeError, r"`images` expected a tensor, got list"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"`images` expected a batch \(N, C, H, W\).*\(3, 8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, ValueError, r"at least one image, got torch.float32 of shape \(0,"),
        ({"images": torch.zeros(1, 3, 8, 8).byte()}, ValueError, r"floating dtype.*torch.uint8"),
        ({"images": torch.full((2, 3, 8, 8), torch.nan)}, ValueError, r"finite values.*in images \[0, 1\]"),
        ({"model": gives(torch.zeros(4, 3, 2))}, ValueError, r"logits \(N, K\) = \(4, K\), got \(4, 3, 2\)"),
        ({"model": gives((1, 2))}, ValueError, r"logits \(N, K\) = \(4, K\), got tuple. Wrap it in a module"),
        ({"model": gives(torch.tensor([[0.0, 1.0]] * 3 + [[torch.inf, 0.0]]))}, ValueError, r"finite.*images \[3\]"),
        ({"targets": 3}, ValueError, r"classes in \[0, 2\], got 3"),
        ({"targets": [0, 1]}, ValueError, r"each of the 4 images, got shape \(2,\)"),
        ({"attributions": GradCAM("conv3")}, ValueError, r"got 'conv3'. Near names: conv2, conv1"),
        ({"attributions": GradCAM("head")}, ValueError, r"`layer` 'head' expected.*\(N, D, h, w\), got \(4, 3\)"),
        ({"attributions": GradCAM(nn.ReLU())}, ValueError, r"got a ReLU that is not part of it"),
        ({"attributions": {}}, ValueError, r"at least one method, got an empty dict"),
        ({"attributions": {"a": GradCAM}}, TypeError, r"`attributions\['a'\]` expected an Attribution.*Create it"),
        ({"attributions": [GradCAM()]}, TypeError, r"an Attribution or a dict of them, got list.*Give them names"),
        ({"attributions": GradCAM}, TypeError, r"an Attribution or a dict of them.*Create it: `GradCAM\(\)`"),
        ({"attributions": black}, TypeError, r"an Attribution or a dict of them, got function.*`FromCallable\("),
        (
            {"score": "pre_softmax"},
            TypeError,
            "`score` expected a function, got 'pre_softmax'; the default is centered",
        ),
        ({"attributions": FakeCAM(), "score": pre_softmax}, ValueError, "got FakeCAM, which has none"),
        ({"score": lambda logits, targets: logits}, ValueError, r"one number per image, \(4,\), got \(4, 3\)"),
    ],
)
def test_bad_input_gets_a_clear_error_and_changes_nothing(change, error, message):
    """What was expected, what came, and the remedy."""
    model = small_net()
    before = state_of(model)
    arguments = {"model": model, "images": random_images(), "targets": None, "attributions": InputGradient()} | change
    with pytest.raises(error, match=message):
        explain(**arguments)
    assert_same_state(before, state_of(model))


class Overwriting(SmallNet):
    """Works on its images in place, as a standardisation with `inplace=True` does."""

    def forward(self, images):
        return super().forward(images.mul_(0.5))


class Copying(SmallNet):
    """The same, but that it leaves its images alone."""

    def forward(self, images):
        return super().forward(images * 0.5)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "foreign"])
def test_a_model_may_overwrite_its_images(name):
    """The caller's stay as they are, and maps are those of a model that works on a copy.

    Not so where a function calls the model itself, which may want the gradient of the very images that it is given.
    """
    found, images = [], random_images()
    for kind in (Copying, Overwriting):
        model = kind().eval()
        model.load_state_dict(small_net().state_dict())
        found.append(explain(model, images, 1, attributions=EVERY[name]))
    assert torch.equal(images, random_images())
    torch.testing.assert_close(found[1], found[0])


def test_a_given_baseline_is_not_overwritten():
    """Not by a model that works on its images in place either."""
    baseline = torch.ones(4, 3, 8, 8)
    methods = {"score": ScoreCAM("conv2", baseline=baseline), "rsi": RSIGradCAM("conv2", n_steps=2, baseline=baseline)}
    explain(Overwriting().eval(), random_images(), attributions=methods)
    assert torch.equal(baseline, torch.ones(4, 3, 8, 8))


def test_the_layer_is_found_in_a_transformer_that_overwrites_its_images():
    """Which takes a backward pass of the image."""

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, images):
            tokens = self.embed(images.mul_(0.5)).flatten(2).transpose(1, 2)
            return self.head(self.norm(tokens).mean(1))

    maps = explain(Transformer(), random_images(), 0, attributions={"auto": GradCAM(), "named": GradCAM("norm")})
    assert torch.equal(maps["auto"], maps["named"])


def test_a_module_is_found_by_each_of_its_names():
    """One that is called twice has two, and is refused by both."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name in ("1", "3"):
        with pytest.raises(ValueError, match="`layer` '1' was called 2 times in the forward pass"):
            explain(model, random_images(), attributions=GradCAM(name))


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")  # it is, and it is still used
def test_a_scripted_model_is_refused_and_a_wrapped_one_explained():
    """The remedy that is named works."""
    model = small_net()
    scripted = torch.jit.trace(model, random_images())
    with pytest.raises(TypeError, match=r"`model` expected a module written in Python, got .*Wrap it"):
        explain(scripted, random_images(), attributions=InputGradient())
    found = explain(nn.Sequential(scripted), random_images(), attributions=InputGradient())
    torch.testing.assert_close(found, explain(model, random_images(), attributions=InputGradient()))


def test_a_layer_that_is_not_called_is_named():
    """It exists, but this forward does not use it."""
    model = small_net()
    model.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="`layer` 'spare' was not called"):
        explain(model, random_images(), attributions=GradCAM("spare"))


def test_maps_of_a_wrong_shape_are_refused():
    """A method of the user's own that forgets to upsample."""

    class Coarse(Attribution):
        def __call__(self, trace, targets):
            return torch.zeros(len(targets), 2, 2)

    with pytest.raises(ValueError, match=r"'map' expected to give maps \(N, H, W\) = \(4, 8, 8\), got \(4, 2, 2\)"):
        explain(small_net(), random_images(), attributions=Coarse())


def test_parameters_made_in_inference_mode_are_refused():
    """They cannot take part in a gradient; the remedy is named."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    with pytest.raises(RuntimeError, match=r"inference_mode=False"):
        explain(model, random_images(), attributions=InputGradient())


def test_volumes_are_refused_by_name():
    """Not as images of a wrong shape."""
    with pytest.raises(ValueError, match=r"volumes \(N, C, D, H, W\) are not explained"):
        explain(small_net(), torch.rand(2, 3, 4, 8, 8), attributions=GradCAM("conv2"))
