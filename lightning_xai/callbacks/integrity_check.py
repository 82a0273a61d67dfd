"""One check of a classifier by probes, alone and against a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.attribution import Attribution, GradCAM, InputGradient
from lightning_xai.callbacks.base import ExplainingCallback
from lightning_xai.callbacks.integrity_finding import DRAWN, Finding, origin_of_shift
from lightning_xai.integrity import AT_LAYER, Fingerprint, Inspection, Threshold, for_model, inspect_model
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import Calling
from lightning_xai.types import OneLayer


@dataclass
class IntegrityCheck:
    """Judges a classifier again and again by the same probes, in the course of one run.

    The fingerprint of a reference is taken, or read, at the first check; the origin of a shift is looked for at the
    first flag.

    Attributes:
        reference: A trusted model, its fingerprint, or the file of one; None to judge the classifier alone.
        image_level: Whether to look at the gradient of the image too.
        threshold: From which suspicion on to flag; None for the default.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
        >>> images = torch.rand(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> print(IntegrityCheck().look(model, images, "0", 100, Calling()).verdict)
        raw and centred maps agree
    """

    reference: nn.Module | Fingerprint | str | Path | None = None
    image_level: bool = False
    threshold: Threshold | None = None
    _fingerprint: Fingerprint | None = field(default=None, init=False)
    _origin: tuple[Inspection | None, Tensor] | None = field(default=None, init=False)

    def look(
        self,
        model: nn.Module,
        probes: Tensor,
        layer: OneLayer,
        step: int,
        calling: Calling,
        attributions: Mapping[str, Attribution] | None = None,
    ) -> Finding:
        """Check the classifier as it is now.

        Args:
            model: The classifier.
            probes: Images (N,C,H,W), on any device.
            layer: The explained layer.
            step: Number of optimizer steps that the model has made.
            calling: What else it is given, where its logits are, and the context it runs in.
            attributions: Methods whose maps are looked at too, with their layers, and the image where they need it.

        Returns:
            The finding.

        Raises:
            ValueError: If the probes or the reference do not fit the model, as `inspect_model` and `Fingerprint` say.
        """
        inspection = inspect_model(
            model,
            for_model(model, probes),
            layer=layer,
            image_level=self.image_level or any(one.needs_image_gradient for one in (attributions or {}).values()),
            attributions=attributions,
            threshold=self.threshold,
            calling=calling,
        )
        if self.reference is None:
            return Finding(step, inspection)
        self._fingerprint = self._fingerprint or self._trusted(probes, inspection.layer, calling)
        return Finding(step, inspection, self._fingerprint.compare(model, probes, layer=layer, calling=calling))

    def traced_back(
        self, model: nn.Module, probes: Tensor, finding: Finding, calling: Calling
    ) -> tuple[Finding, Tensor, Calling]:
        """Where the shift of a flagged model comes from.

        Args:
            model: The classifier.
            probes: Images (N,C,H,W), on any device.
            finding: What flagged it.
            calling: What else it is given, where its logits are, and the context it runs in.

        Returns:
            The finding with the origin, a few probes to draw, (n,C,H,W), as the model takes them, and their calling.
        """
        images = for_model(model, probes)
        if self._origin is None:
            self._origin = origin_of_shift(model, images, finding, calling)
        origin, rows = self._origin
        shown = rows[:DRAWN]
        return replace(finding, origin=origin), images[shown], calling.of(shown, len(images))

    def _trusted(self, probes: Tensor, layer: str, calling: Calling) -> Fingerprint:
        if isinstance(self.reference, Fingerprint):
            return self.reference
        if not isinstance(self.reference, nn.Module):
            return Fingerprint.load(self.reference)  # type: ignore[arg-type]  # a path: there is a reference
        named = layer in dict(self.reference.named_modules())
        return Fingerprint.of(self.reference, probes, layer=layer if named else None, calling=calling)


def methods_of(callbacks: Iterable[object], model: nn.Module, name: str | None) -> dict[str, Attribution]:
    """The methods with which a run explains a classifier, as far as raw and centred maps of them can be compared.

    Those that explain no score are left out. Where maps take further passes of the model, which would make a check
    dear, Grad-CAM at their layers stands in, or the input gradient.

    Args:
        callbacks: Those of the Trainer.
        model: The classifier.
        name: Its name, by which a callback looks for it that has not found it yet.

    Returns:
        Methods by name.
    """
    found: dict[str, Attribution] = {}
    for callback in callbacks:
        if isinstance(callback, ExplainingCallback) and _explains(callback, model, name):
            for key, method in callback.explanations().items():
                other = key in AT_LAYER or found.get(key, method) is not method
                found[f"{key} ({type(callback).__name__})" if other else key] = method
    return {key: _without_reruns(method) for key, method in found.items() if _has_score(method)}


def _explains(callback: ExplainingCallback, model: nn.Module, name: str | None) -> bool:
    return callback.finder.model is model if callback.finder.known else callback.classifier == name


def _has_score(method: Attribution) -> bool:
    try:
        method.with_score(pre_softmax)
    except ValueError:
        return False
    return True


def _without_reruns(method: Attribution) -> Attribution:
    if not method.needs_reruns:
        return method
    layers = [layer for layer in method.layers() if layer is not None]
    return GradCAM(layers or None) if method.layers() else InputGradient()
