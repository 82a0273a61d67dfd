"""The training term as command lines ask for it, and the attributions that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lightning_xai as xai
from common.options import option
from common.training import say
from lightning_xai import regularization


def squared_norm(gradients: Tensor, guided: Tensor) -> Tensor:
    """The control: a penalty on the size of the gradient, which has no teacher (Drucker and LeCun 1992), (N,)."""
    return gradients.float().square().sum((1, 2, 3))


# A new one each time: they are modules, and would share their mode.
ERRORS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": regularization.CosineLoss,
    "sigmoid": regularization.SigmoidMaskingLoss,
    "centred sigmoid": regularization.CenteredSigmoidMaskingLoss,
    "histogram": regularization.HistogramIntersectionLoss,
    "l1": regularization.L1DistanceLoss,
    "l2": regularization.L2DistanceLoss,
    "gradient norm": lambda: squared_norm,
}
TEACHERS = {
    "-loss": regularization.negative_loss_teacher,
    "loss": regularization.loss_teacher,
    "score": regularization.class_score_teacher,
}
SCHEDULES: dict[str, Callable[[float, int], Callable[[int], float]]] = {
    "constant": lambda weight, steps: regularization.ConstantWeight(weight),
    "warmup": lambda weight, steps: xai.LinearWarmup(weight, max(1, steps // 5)),
}


@dataclass(frozen=True)
class TermOptions:
    """The training term."""

    lambda_: float = option(0.0, "weight of the term", flag="--lambda")
    schedule: str = option("constant", "how the weight comes in", choices=SCHEDULES)
    error: str = option("cosine", "how gradients are compared", choices=ERRORS)
    teacher: str = option("-loss", "whose guided gradient teaches", choices=TEACHERS)
    rectifiers: str = option("relu", "where the guided rule clamps; all: GELU, SiLU, ...", choices=["relu", "all"])
    batch_norm: str = option("training", "under the term", choices=["training", "evaluation"])
    every_n_steps: int = option(1, "compute the term in every n-th step only")
    fraction: float = option(1.0, "compute the term of this share of each batch")
    term_layer: str | None = option(None, "take the term at this inner layer, not at the image", metavar="NAME")
    adaptive: float | None = option(None, "instead of a schedule: as GradientShare allows", metavar="SHARE")

    def loss(self, weight: float) -> xai.GuidedGradientLoss:
        """The term; where its weight does not set itself, training brings the schedule."""
        adaptive = None
        if self.adaptive is not None and weight:
            adaptive = regularization.AdaptiveWeight(regularization.GradientShare(self.adaptive), start=weight)
        return xai.GuidedGradientLoss(
            ERRORS[self.error](),
            adaptive,
            teacher=TEACHERS[self.teacher],
            rectifiers=self.rectifiers,  # type: ignore[arg-type]
            batch_norm=self.batch_norm,  # type: ignore[arg-type]
            every_n_steps=self.every_n_steps,
            fraction=self.fraction,
            layer=self.term_layer,
        )


Methods = dict[str, xai.Attribution]
ATTRIBUTIONS: dict[str, Callable[[str | None], xai.Attribution]] = {
    "gradcam": lambda layer: xai.GradCAM(layer),
    "gradcam_plus": lambda layer: xai.GradCAMPlus(layer),
    "gradcam_plus_plus": lambda layer: xai.GradCAMPlusPlus(layer),
    "input_gradient": lambda layer: xai.InputGradient(),
    "guided_gradient": lambda layer: xai.GuidedGradient(),
}


def attributions_of(
    names: Sequence[str], layer: str | None, model: nn.Module, image_size: int, rectifiers: str = "relu"
) -> Methods:
    """The methods asked for, tried once; guided gradients are left out, and said so, without rectifiers."""
    image = torch.zeros(1, 3, image_size, image_size)
    methods = {name: ATTRIBUTIONS[name](layer) for name in names}
    if "guided_gradient" in methods:
        methods["guided_gradient"] = xai.GuidedGradient(rectifiers=rectifiers)  # type: ignore[arg-type]
        try:
            xai.explain(model, image, attributions=methods["guided_gradient"])
        except ValueError as error:
            say(f"guided_gradient is left out: {error}")
            del methods["guided_gradient"]
    if not methods:
        raise ValueError("`--attributions` expected a method besides guided_gradient for this network.")
    xai.explain(model, image, attributions=methods)
    return methods
