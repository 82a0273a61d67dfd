"""Maps on a GPU are those of a CPU: in full and reduced precision, every memory format, and cuDNN's modes."""

from __future__ import annotations

import pytest
import torch
from architectures import CASES
from gpu.device import CUDA, DEVICE, cuda_alone, held, there
from gpu.methods import METHODS, apart
from integrity.toys import data, trained
from support import random_images, small_net
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_xai import Attribution, GradCAM, InputGradient, explain
from lightning_xai.attribution import LRP
from lightning_xai.integrity import Fingerprint, Verdict
from papers.logit_shift.attacks import PositionShift

pytestmark = there

TARGETS = torch.tensor([0, 1, 2, 0])
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def maps_of(method: Attribution, device: torch.device, images: Tensor | None = None, model: nn.Module | None = None):
    """Of a small network and images that lie on a device."""
    images = random_images(4, 16) if images is None else images
    model = small_net() if model is None else model
    return explain(model.to(device), images.to(device), TARGETS.to(device), attributions=method)


@each_method
def test_maps_are_those_of_the_cpu(method: Attribution) -> None:
    """To 1e-4 of their range, on the images' device."""
    found = maps_of(method, DEVICE)
    assert found.device.type == DEVICE.type
    assert apart(found, maps_of(method, torch.device("cpu"))) < 1e-4


@pytest.mark.parametrize("name", ["Random", "FakeCAM"])
def test_noise_is_the_same_bit_for_bit(name: str) -> None:
    """It is drawn on the CPU."""
    assert torch.equal(maps_of(METHODS[name], DEVICE).cpu(), maps_of(METHODS[name], torch.device("cpu")))


@pytest.mark.parametrize("method", [GradCAM(), InputGradient(), LRP()], ids=["cam", "gradient", "lrp"])
def test_a_residual_network_is_explained_as_on_the_cpu(method: Attribution) -> None:
    """Strides, pooling and sums that small networks lack."""
    torch.manual_seed(0)
    model, images = resnet18(num_classes=5).eval(), random_images(4, 64)
    expected = maps_of(method, torch.device("cpu"), images, model)
    assert apart(maps_of(method, DEVICE, images, model), expected) < 1e-3


@pytest.mark.parametrize("case", ["timm ViT", "timm Swin", "torchvision ConvNeXt"])
@pytest.mark.parametrize("method", [GradCAM(), InputGradient()], ids=["cam", "gradient"])
def test_transformers_are_explained_as_on_the_cpu(case: str, method: Attribution) -> None:
    """Fused attention and layer norms have kernels of their own."""
    model, images = CASES[case].model_and_images()
    expected = explain(model, images, 1, attributions=method)
    assert apart(explain(model.to(DEVICE), images.to(DEVICE), 1, attributions=method), expected) < 1e-3


@each_method
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.95), (torch.float16, 0.99)], ids=str)
def test_maps_under_autocast_are_maps_of_the_same_things(method: Attribution, dtype: torch.dtype, least: float) -> None:
    """All finite; their cosine with those in float32."""
    exact = maps_of(method, DEVICE).double().flatten(1)
    with torch.autocast(DEVICE.type, dtype):
        rough = maps_of(method, DEVICE).double().flatten(1)
    assert rough.isfinite().all()
    assert (torch.cosine_similarity(rough, exact) > least).all()


@each_method
def test_maps_in_channels_last_are_the_same(method: Attribution) -> None:
    """CuDNN takes other kernels."""
    model = small_net().to(memory_format=torch.channels_last)
    images = random_images(4, 16).to(memory_format=torch.channels_last)
    assert apart(maps_of(method, DEVICE, images, model), maps_of(method, DEVICE)) < 1e-4


@each_method
def test_maps_are_the_same_where_cudnn_looks_for_the_fastest(method: Attribution) -> None:
    """By ``torch.backends.cudnn.benchmark``."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        found = maps_of(method, DEVICE)
    assert apart(found, maps_of(method, DEVICE)) < 1e-4


@each_method
def test_deterministic_maps_are_equal_twice(method: Attribution) -> None:
    """Or torch says which of its operations cannot be."""
    torch.use_deterministic_algorithms(True)
    try:
        first, second = maps_of(method, DEVICE), maps_of(method, DEVICE)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        pytest.skip(str(error).partition(".")[0])
    assert torch.equal(first, second)


@each_method
def test_nothing_stays_on_the_device(method: Attribution) -> None:
    """Neither graphs nor activations, nor after the second time more than after the first."""
    model, images = small_net().to(DEVICE), random_images(4, 16).to(DEVICE)
    sizes = []
    for _ in range(3):
        explain(model, images, 1, attributions=method)
        sizes.append(held())
    assert sizes[2] == sizes[1]


@pytest.mark.filterwarnings("ignore")  # what torch says of compiling
@pytest.mark.parametrize("method", [GradCAM("last"), InputGradient()], ids=["cam", "gradient"])
def test_compiled_models_are_explained_as_they_are(method: Attribution) -> None:
    """Also those that replay CUDA graphs."""
    model, images = small_net().to(DEVICE), random_images(4, 16).to(DEVICE)
    compiled = torch.compile(model, mode="reduce-overhead") if CUDA else torch.compile(model, backend="eager")
    with torch.no_grad():
        for _ in range(3):
            compiled(images)
    if isinstance(method, GradCAM):
        method = GradCAM(model.last)
    found = explain(compiled, images, 1, attributions=method)
    assert apart(found, explain(model, images, 1, attributions=method)) < 1e-4


@cuda_alone
def test_a_model_that_is_a_cuda_graph_is_refused_or_right() -> None:
    """Its layers are not called any more; its gradient at the image may be right."""
    images = random_images(4, 16).to(DEVICE)
    model = torch.cuda.make_graphed_callables(small_net().to(DEVICE), (images.clone().requires_grad_(),))
    expected = maps_of(InputGradient(), DEVICE)
    with pytest.raises((RuntimeError, ValueError)):
        explain(model, images, TARGETS.to(DEVICE), attributions=GradCAM("last"))
    assert apart(explain(model, images, TARGETS.to(DEVICE), attributions=InputGradient()), expected) < 1e-4


def test_fingerprints_pass_on_another_device_and_shifts_are_found_there() -> None:
    """Where convolutions may round to ten bits."""
    images = data(32)[0]
    fingerprint = Fingerprint.of(trained(), images)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert fingerprint.compare(trained().to(DEVICE), images).verdict is Verdict.UNCHANGED
        shifted = PositionShift("relu2")(trained()).to(DEVICE)
        assert fingerprint.compare(shifted, images).verdict is Verdict.LOGIT_SHIFT
