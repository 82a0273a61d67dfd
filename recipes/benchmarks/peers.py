"""Methods of other libraries as functions ``(model, images (N,C,H,W), targets (N,)) -> maps (N,...)``, for comparisons.

What a function returns is what its library returns, as a tensor; the score is the logit, as all of them have it. The
libraries, the extra ``peers`` of the package, are imported when a function is called. They may change the model that
they are given: give them a copy, or run them through `FromCallable`.
"""

from __future__ import annotations

import contextlib
import io

import torch
from torch import Tensor, nn


def captum_gradcam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str) -> Tensor:
    """Grad-CAM at the layer's resolution, (N,1,h,w)."""
    from captum.attr import LayerGradCam

    return LayerGradCam(model, model.get_submodule(layer)).attribute(images, targets, relu_attributions=True)


def captum_guided_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Guided backpropagation, (N,C,H,W)."""
    from captum.attr import GuidedBackprop

    return GuidedBackprop(model).attribute(images, targets)


def captum_integrated_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, *, n_steps: int, baseline: Tensor | float = 0.0
) -> Tensor:
    """Integrated Gradients by Gauss-Legendre quadrature, as many images at once as are given, (N,C,H,W)."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    return method.attribute(images, baseline, targets, n_steps=n_steps, internal_batch_size=len(images))


def captum_smoothgrad(model: nn.Module, images: Tensor, targets: Tensor, *, n_samples: int, deviation: float) -> Tensor:
    """SmoothGrad with noise of one deviation for all images, (N,C,H,W)."""
    from captum.attr import NoiseTunnel, Saliency

    method = NoiseTunnel(Saliency(model))
    noise = {"nt_type": "smoothgrad", "nt_samples": n_samples, "nt_samples_batch_size": 1, "stdevs": deviation}
    return method.attribute(images, target=targets, abs=False, **noise)


def grad_cam_package(model: nn.Module, images: Tensor, targets: Tensor, *, method: str, layer: str) -> Tensor:
    """A method of pytorch-grad-cam by its name there, min-max normalised and resized, (N,H,W)."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    categories = [ClassifierOutputTarget(target) for target in targets.tolist()]
    with (
        getattr(pytorch_grad_cam, method)(model=model, target_layers=[model.get_submodule(layer)]) as explain,
        contextlib.redirect_stderr(io.StringIO()),  # Score-CAM's progress bar
    ):
        return torch.from_numpy(explain(input_tensor=images.detach(), targets=categories))


def torchcam(model: nn.Module, images: Tensor, targets: Tensor, *, method: str, layer: str) -> Tensor:
    """A method of torch-cam by its name there, at the layer's resolution and not normalised, (N,h,w)."""
    from torchcam import methods

    with getattr(methods, method)(model, layer) as extractor:
        scores = model(images.detach())
        return extractor(targets.tolist(), scores, normalized=False)[0]


def zennit_guided_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Guided backpropagation, (N,C,H,W)."""
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop

    with Gradient(model, GuidedBackprop()) as attributor:
        return attributor(images, lambda logits: _one_hot(logits, targets))[1]


def zennit_integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor, *, n_steps: int) -> Tensor:
    """Integrated Gradients from zero by a right-hand sum, (N,C,H,W)."""
    from zennit.attribution import IntegratedGradients

    with IntegratedGradients(model, n_iter=n_steps) as attributor:
        return attributor(images, lambda logits: _one_hot(logits, targets))[1]


def zennit_smoothgrad(
    model: nn.Module, images: Tensor, targets: Tensor, *, n_samples: int, noise_level: float
) -> Tensor:
    """SmoothGrad with noise relative to each image's range, (N,C,H,W)."""
    from zennit.attribution import SmoothGrad

    with SmoothGrad(model, noise_level=noise_level, n_iter=n_samples) as attributor:
        return attributor(images, lambda logits: _one_hot(logits, targets))[1]


def zennit_lrp(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """LRP: z+ in convolutions, epsilon in linear layers, flat at the image, in a torchvision ResNet, (N,C,H,W)."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer

    with Gradient(model, EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
        return attributor(images, lambda logits: logits * _one_hot(logits, targets))[1]


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
