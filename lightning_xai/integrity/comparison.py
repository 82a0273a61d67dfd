"""The check with a reference: which part of a model's change all classes share, and which they do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.integrity.evidence import Evidence
from lightning_xai.integrity.final_layer import centered_logits
from lightning_xai.integrity.measures import agreements, median
from lightning_xai.integrity.verdict import Verdict


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """How a model differs from its reference on N probe images.

    Attributes:
        layer: Name of the explained layer.
        residuals: Change of the centred logits relative to their norm, (N,): what the softmax sees.
        shifts: Change of the mean logit, (N,), less its median over the images, relative to the size of the centred
            logits: what the softmax does not see. A constant moves no gradient and is left out.
        shift_gradients: Norm of the change of the mean logit's gradient, relative to the centred score's, (N,).
        residual_gradients: The same of the centred score's gradient, (N,).
        raw_agreement: Rank correlation of both models' raw-logit maps, before any ReLU, (N,) by name of the method.
        zero_sum_agreement: The same of the maps of the centred score.
        value_tolerance: What rounding can do to the logits: ``sqrt(eps) + 8 eps max|z| / |z_c|``, with ``eps`` of the
            coarser model and the size of the centred logits. A shift ``t`` costs ``eps |t|``.
        gradient_tolerance: The same for gradients, which jump where a rounding switches a ReLU:
            ``4 sqrt(eps) + 8 eps |g_cm| / |g_c|``.
        differing: The parts of the two models whose digests differ. Of those only code is judged: benign changes of
            numbers do so too.

    Example:
        >>> import copy
        >>> from torch import nn
        >>> from lightning_xai.integrity import compare_models
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> altered = copy.deepcopy(model)
        >>> altered[4].weight.data += 10  # to all rows alike: no softmax sees it
        >>> comparison = compare_models(altered, model, torch.rand(8, 1, 6, 6))
        >>> comparison.verdict.name, comparison.differing
        ('LOGIT_SHIFT', ('parameters',))
    """

    layer: str
    residuals: Tensor
    shifts: Tensor
    shift_gradients: Tensor
    residual_gradients: Tensor
    raw_agreement: dict[str, Tensor]
    zero_sum_agreement: dict[str, Tensor]
    value_tolerance: float
    gradient_tolerance: float
    differing: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Unchanged, logit shift (raw maps differ, zero-sum maps agree), changed (both differ), or other code.

        Logits are judged by the image that changed most; gradients and maps, which single roundings can move, by the
        image that only a tenth of all exceeds. Code that differs is never called unchanged: what it does on other
        images is not known.
        """
        if _exceeds(self.residuals, self.residual_gradients, self.zero_sum_agreement, self):
            return Verdict.CHANGED
        if _exceeds(self.shifts.abs(), self.shift_gradients, self.raw_agreement, self):
            return Verdict.LOGIT_SHIFT
        return (
            Verdict.OTHER_CODE if set(self.differing) & {"code", "hooks", "autograd functions"} else Verdict.UNCHANGED
        )

    @property
    def figures(self) -> dict[str, float]:
        """The numbers that are judged."""
        numbers = {
            "logit residual": float(self.residuals.max()),
            "logit shift": float(self.shifts.abs().max()),
            "residual gradient": _most(self.residual_gradients),
            "shift gradient": _most(self.shift_gradients),
        }
        numbers |= {f"{name} zero-sum": -_most(-one) for name, one in self.zero_sum_agreement.items()}
        return numbers | {f"{name} raw": -_most(-one) for name, one in self.raw_agreement.items()}

    def __str__(self) -> str:
        lines = [f"{self.verdict} against the reference at {self.layer!r}, {len(self.shifts)} images"]
        lines += [f"  {name:<24}{value:12.3g}" for name, value in self.figures.items()]
        tolerances = f"{self.value_tolerance:12.3g} of logits, {self.gradient_tolerance:.3g} of gradients"
        lines.append(f"  {'tolerance':<24}{tolerances}")
        lines.append(f"  digests differ in: {', '.join(self.differing) or 'nothing'}")
        return "\n".join(lines)


def compare_evidence(
    model: Evidence, reference: Evidence, *, layer: str, differing: tuple[str, ...] = ()
) -> ModelComparison:
    """What two models' evidence on the same images amounts to.

    Example:
        >>> one = Evidence(torch.tensor([[1.0, 3.0]]), torch.ones(1, 1), torch.ones(1, 1), {}, {}, eps=1e-7)
        >>> print(compare_evidence(one, one, layer="layer4").verdict)
        unchanged
    """
    z, z0 = centered_logits(model.logits), centered_logits(reference.logits)
    sizes = z0.norm(dim=1)
    size = float(sizes.square().mean().sqrt()) / z0.shape[1] ** 0.5  # of one centred logit
    shifts = (model.logits.double() - reference.logits.double()).mean(1)
    rest = reference.centered.norm(dim=1)
    eps = max(model.eps, reference.eps)
    largest = float(torch.maximum(model.logits.abs().max(), reference.logits.abs().max()))
    common_ratio = median(torch.maximum(model.common.norm(dim=1), reference.common.norm(dim=1)) / rest)
    return ModelComparison(
        layer=layer,
        residuals=(z - z0).norm(dim=1) / sizes,
        shifts=(shifts - shifts.median()) / size,
        shift_gradients=(model.common - reference.common).norm(dim=1) / rest,
        residual_gradients=(model.centered - reference.centered).norm(dim=1) / rest,
        raw_agreement=_agreement(model.raw_maps, reference.raw_maps),
        zero_sum_agreement=_agreement(model.zero_sum_maps, reference.zero_sum_maps),
        value_tolerance=eps**0.5 + 8 * eps * largest / size,
        gradient_tolerance=4 * eps**0.5 + 8 * eps * common_ratio,
        differing=differing,
    )


VISIBLE = 0.9
"""Below this rank correlation two maps look different."""


def _most(values: Tensor) -> float:
    """What a tenth of the images exceeds."""
    return float(values.double().quantile(0.9))


def _exceeds(values: Tensor, gradients: Tensor, agreements: dict[str, Tensor], comparison: ModelComparison) -> bool:
    return (
        bool(values.max() > comparison.value_tolerance)
        or _most(gradients) > comparison.gradient_tolerance
        or any(_most(-one) > -VISIBLE for one in agreements.values())
    )


def _agreement(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: agreements(first[name], second[name])[0] for name in second}
