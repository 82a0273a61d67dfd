"""What the check without a reference found: verdict, figures, and the images on which maps differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_xai.integrity.verdict import Threshold, Verdict

VISIBLE = 0.1
"""One minus the rank correlation above which two maps look different."""
ALIKE = 0.025
"""The same up to which maps are called alike: of two maps that are both within it of a third, each is within `VISIBLE`
of the other, for the arc cosine of a correlation is a distance (``2 arccos 0.975 < arccos 0.9``)."""
TAIL = 0.9
"""Figures are those that a tenth of the images exceeds, so that an edit that acts on some classes shows."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the check without a reference found.

    Attributes:
        layer: Name of the explained layer.
        disagreement: One minus the rank correlation of the raw logit's and the centred score's map, before any ReLU,
            (N,) in [0, 2] by name of the method: what a user would see.
        raw_against_log_odds: The same of the raw logit's and the log-odds' maps.
        centered_against_log_odds: The same of the centred score's and the log-odds' maps.
        shares: Share of the gradient at the layer that is common to all classes, (N,) in [0, 1].
        pooled_shares: The same of the gradients averaged over positions, with which Grad-CAM weighs, (N,).
        elsewhere: The larger of both at the further layers where methods make maps, and the same at the ``image`` if
            asked for, (N,) by name.
        nonlinearity: How far the raw logit's gradient is from the mean logit's and the centred score's together,
            relative to these, (N,): rounding alone, but for a backward pass that is not that of a function.
        tolerance: What rounding can do to it.
        mean_row: Share of the final layer's weights that is common to all classes; None where that layer's output is
            not the logits, or it is not known.
        position: Row and column of the layer at which the common gradient is largest.
        concentration: Share of its square that lies at that position.
        hooks: Hooks on the model, and autograd functions in the pass that are written in Python: whatever may act on
            gradients alone.
        reasons: What in the logits could be an innocent reason for maps that differ, in words.
        threshold: From which suspicion on a logit shift is reported.

    Example:
        >>> from torch import nn
        >>> from lightning_xai.integrity import inspect_model
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -20.0], [-20.0, 40.0]])
        >>> inspection = inspect_model(model, torch.rand(8, 2, 4, 4))
        >>> inspection.figures["mean row"]
        0.1
    """

    layer: str
    disagreement: dict[str, Tensor]
    raw_against_log_odds: dict[str, Tensor]
    centered_against_log_odds: dict[str, Tensor]
    shares: Tensor
    pooled_shares: Tensor
    elsewhere: dict[str, Tensor]
    nonlinearity: Tensor
    tolerance: float
    mean_row: float | None
    position: tuple[int, int]
    concentration: float
    hooks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    threshold: Threshold = field(default_factory=Threshold)

    @property
    def worst(self) -> Tensor:
        """The largest disagreement of any method on each image, (N,)."""
        return torch.stack([one.cpu() for one in self.disagreement.values()]).amax(0)

    @property
    def differing(self) -> tuple[int, ...]:
        """Rows of the images on which a method's raw and centred maps look different."""
        return tuple((self.worst > VISIBLE).nonzero()[:, 0].tolist())

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of the check: what a tenth of the images exceeds, the worst image, and the mean row."""
        spread = {f"{name} disagreement": values for name, values in self.disagreement.items()}
        spread |= {"share": self.shares, "pooled share": self.pooled_shares, "nonlinearity": self.nonlinearity}
        spread |= {f"{name} share": values for name, values in self.elsewhere.items()}
        numbers = {name: tail(values) for name, values in spread.items()}
        numbers |= {"worst disagreement": float(self.worst.max()), "differing": len(self.differing) / len(self.worst)}
        return numbers if self.mean_row is None else numbers | {"mean row": self.mean_row}

    @property
    def suspicion(self) -> float:
        """How much of the gradient is common to all classes, on images whose maps look different: its upper tail."""
        shares = [self.shares, self.pooled_shares, *self.elsewhere.values()]
        largest = torch.stack([one.cpu().double() for one in shares]).amax(0)
        return tail(torch.where(self.worst > VISIBLE, largest, 0.0))

    @property
    def stands_apart(self) -> str | None:
        """Which of raw logit and centred score is farther from the log-odds, where their maps differ; None else.

        A number added to all logits moves the raw logit's maps alone, one that is taken off classes without probability
        the centred score's alone. With two classes log-odds and centred score are one.
        """
        if self.verdict is Verdict.CLEAN:
            return None
        at = self.worst >= self.worst.quantile(TAIL)
        raw, rest = (
            sum(float(values.cpu()[at].mean()) for values in maps.values())
            for maps in (self.raw_against_log_odds, self.centered_against_log_odds)
        )
        return "raw logit" if raw >= rest else "centred score"

    @property
    def verdict(self) -> Verdict:
        """Clean, maps that differ, a logit shift, or a false gradient."""
        if float(self.nonlinearity.max()) > self.tolerance:
            return Verdict.FALSE_GRADIENT
        if self.suspicion > self.threshold.value:
            return Verdict.LOGIT_SHIFT
        return Verdict.CLEAN if float(self.worst.max()) <= ALIKE else Verdict.MAPS_DIFFER

    def __str__(self) -> str:
        alarm = "an alarm" if self.verdict.alarms else "no alarm"
        lines = [f"{self.verdict} at {self.layer!r}, {len(self.worst)} images: {alarm}"]
        lines += [f"  {name:<24}{value:9.4f}" for name, value in self.figures.items()]
        lines.append(f"  {'suspicion':<24}{self.suspicion:9.4f}  (threshold {self.threshold})")
        if self.verdict is not Verdict.CLEAN:
            lines.append(f"  the {self.stands_apart}'s maps stand apart from those of the log-odds")
            lines.append(f"  maps look different on {_counted(self.differing)}")
            lines.append(f"  largest at position {self.position}, {self.concentration:.0%} of the common gradient")
            lines += [f"  possible reason: {reason}" for reason in self.reasons]
        lines += [f"  {hook}" for hook in self.hooks]
        return "\n".join(lines)


def _counted(rows: tuple[int, ...]) -> str:
    named = ", ".join(map(str, rows[:16])) + (", ..." if len(rows) > 16 else "")
    return f"{len(rows)} images: {named}" if rows else "no image, though they are not alike"


def tail(values: Tensor) -> float:
    """What a tenth of the images exceeds; NaN where a value is NaN.

    Example:
        >>> tail(torch.tensor([0.0] * 8 + [1.0] * 2))
        1.0
    """
    return float(values.double().quantile(TAIL))
