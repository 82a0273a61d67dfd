"""What one check of a classifier found: its verdict, its figures, what is kept of it, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_xai.attribution import GradCAM, HiResCAM
from lightning_xai.baselines import to_pixels
from lightning_xai.explain import attribute, capture_for
from lightning_xai.integrity import Digest, Inspection, ModelComparison, Verdict, locate_shift
from lightning_xai.scores import centered, log_softmax, pre_softmax, predicted
from lightning_xai.trace import Calling, predict, run
from lightning_xai.types import OneLayer
from lightning_xai.visualization import Panel, overlay

LOCATED_WITH = 8
"""Number of probes with which the origin of a shift is looked for: it takes three sweeps for each layer."""
DRAWN = 4
"""Number of probes in the picture of a flagged model."""


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of one check.

    Attributes:
        step: Number of optimizer steps that the model had made.
        inspection: What the model shows alone.
        comparison: How it differs from its reference; None without one.
        origin: The check at the last layer that shows the shift; None where nothing was flagged, or no layer does.

    Example:
        >>> import torch
        >>> from lightning_xai.integrity import inspect_model
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
        >>> images = torch.rand(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> print(Finding(step=100, inspection=inspect_model(model, images)).verdict)
        raw and centred maps agree
    """

    step: int
    inspection: Inspection
    comparison: ModelComparison | None = None
    origin: Inspection | None = None

    @property
    def verdict(self) -> Verdict:
        """That of the comparison while the model is its reference but for a shift; else that of the model alone.

        Training changes what the classes' differences say, and then tells nothing of a shift.
        """
        if self.comparison is None or self.comparison.verdict is Verdict.CHANGED:
            return self.inspection.verdict
        return self.comparison.verdict

    @property
    def flagged(self) -> bool:
        """Whether raw-logit maps of this model are not to be trusted."""
        return self.verdict.alarms

    @property
    def figures(self) -> dict[str, float]:
        """What is logged, by names without spaces: those against a reference begin with ``reference_``."""
        figures = {**self.inspection.figures, "suspicion": self.inspection.suspicion, "flagged": float(self.flagged)}
        if self.comparison is not None:
            figures |= {f"reference_{name}": value for name, value in self.comparison.figures.items()}
        return {name.replace(" ", "_"): value for name, value in figures.items()}

    @property
    def record(self) -> dict[str, Any]:
        """What is kept in checkpoints: plain numbers and words."""
        return {
            "step": self.step,
            "verdict": self.verdict.name,
            "against_reference": None if self.comparison is None else self.comparison.verdict.name,
            "layer": self.inspection.layer,
            "position": self.place.position,
            "origin": None if self.origin is None else self.origin.layer,
            "threshold": self.inspection.threshold.value,
            "figures": self.figures,
        }

    @property
    def place(self) -> Inspection:
        """The check that tells best where the shift is: at its origin where that was found."""
        return self.inspection if self.origin is None else self.origin

    def __str__(self) -> str:
        lines = [str(self.inspection)] if self.comparison is None else [str(self.comparison), str(self.inspection)]
        if self.flagged:
            lines.append(f"the shift is largest at {self.place.layer!r}, position {self.place.position}")
        return "\n".join(lines)


def changed_since(saved: dict[str, Any], model: nn.Module, finding: Finding) -> str | None:
    """What to say where a classifier is not the one judged when a checkpoint was written; None where it is.

    The checkpoint holds a finding's record with the classifier's digest, or nothing.
    """
    if not saved.get("digest"):
        return None
    differing = Digest(**saved["digest"]).differences(Digest.of(model))
    if not differing:  # the same network may be judged by other images: a verdict alone tells nothing
        return None
    return (
        f"the classifier is not the one that was judged when the checkpoint was written (step {saved['step']}): "
        f"different are its {', '.join(differing)}. Then {saved['verdict']} with suspicion "
        f"{saved['figures']['suspicion']:.3g}, now {finding.verdict.name} with {finding.inspection.suspicion:.3g}."
    )


def remark_on(inspection: Inspection) -> str | None:
    """What is to be said where maps look different and nothing is accused.

    Args:
        inspection: What the classifier shows alone.

    Returns:
        The message, with the score to explain with; None where maps do not look different, or that is an alarm.
    """
    if inspection.verdict is not Verdict.MAPS_DIFFER or not inspection.differing:
        return None
    steered = inspection.stands_apart == "centred score"
    advice = "`score=log_odds`" if steered else "a zero-sum score, as methods do by default"
    return (
        "raw logit and centred score explain the classifier differently, as they do many honest ones: no alarm. "
        f"Explain with {advice}. `print(callback.finding)` tells more."
    )


def origin_of_shift(
    model: nn.Module, images: Tensor, finding: Finding, calling: Calling
) -> tuple[Inspection | None, Tensor]:
    """Where a shift comes from, and the probes that were asked: one of each predicted class first.

    The check at the last layer that shows the shift, None where none does, and rows of the probes, (n,).
    """
    rows = _of_many_classes(predicted(predict(model, images, calling)))[:LOCATED_WITH]
    calling = calling.of(rows, len(images))
    return locate_shift(model, images[rows], threshold=finding.inspection.threshold, calling=calling), rows


def _of_many_classes(classes: Tensor) -> Tensor:
    """Rows (N,): the first of each class, then the second of each, and so on."""
    earlier = (classes[:, None] == classes[None]).tril(-1).sum(1)  # how many of the same class came before
    return earlier.argsort(stable=True)


def picture(
    model: nn.Module,
    images: Tensor,
    layer: OneLayer,
    finding: Finding,
    calling: Calling,
    standard: tuple[Sequence[float], Sequence[float]] | None,
) -> Panel:
    """Maps of the raw logit and of the centred score side by side, with what was found.

    Args:
        model: The classifier.
        images: Probes (N,C,H,W); all are drawn, with other channels than one or three as the mean of these.
        layer: The explained layer.
        finding: The check that flagged the model.
        calling: What else the model is given, where its logits are, and the context it runs in.
        standard: Mean and deviation by which the images were standardised; None to draw them between the extremes of
            each channel.

    Returns:
        The panel; a shift shows where the two maps of a method differ.
    """
    methods = {
        f"{name}\n{score_name}": method(layer, score=score)
        for name, method in (("Grad-CAM", GradCAM), ("HiResCAM", HiResCAM))
        for score_name, score in (("raw logit", pre_softmax), ("centred", centered))
    }
    trace = run(model, images, capture_for(model, methods.values()), calling)
    classes = predicted(trace.logits)
    if images.shape[1] not in (1, 3):
        images, standard = images.mean(1, keepdim=True), None
    pixels = to_pixels(images, *(_between_extremes(images) if standard is None else standard))
    words = [str(finding.verdict), f"{finding.place.layer} {finding.place.position}"]
    found, where = ([word] + [None] * (len(images) - 1) for word in words)
    facts: dict[str, list[Any]] = {
        "found": found,
        "largest at": where,
        "suspicion": [finding.inspection.suspicion] + [None] * (len(images) - 1),
        "prediction": classes.tolist(),
        "probability": log_softmax(trace.logits, classes).exp().tolist(),
    }
    maps = attribute(trace, classes, methods)
    return Panel(pixels.cpu(), {name: overlay(pixels, one).cpu() for name, one in maps.items()}, facts)


def _between_extremes(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of which standardisation would make these images of pixels that fill [0, 1]."""
    lowest, highest = images.amin((0, 2, 3)).double(), images.amax((0, 2, 3)).double()
    scale = 1 / (highest - lowest).clamp(min=1e-12)
    return (-lowest * scale).tolist(), scale.tolist()
