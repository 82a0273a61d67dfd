"""Listening to one validation or test step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_xai.callbacks.classifier import ClassifierFinder
from lightning_xai.trace import Calling, Capture, Listener, Observer, Trace


@dataclass(frozen=True)
class HeardStep:
    """What was heard of one step.

    Attributes:
        observer: What watched it while the classifier was not known.
        listener: What heard the classifier.
    """

    observer: Observer | None = None
    listener: Listener | None = None

    def trace(self, n_images: int) -> Trace | None:
        """The trace of the step's own pass of this many images, of its first one if there were several.

        Returns:
            The trace; None where the classifier was not heard, or its logits were detached on their way.
        """
        if self.listener is None:
            return None
        usable = (one for one in self.listener.traces if one.has_graph or not self.listener.capture.needs_graph)
        return next((one for one in usable if len(one.images) == n_images), None)

    def images_of(self, model: nn.Module) -> Tensor | None:
        """What the classifier was given in a step that was only observed, (N,C,H,W)."""
        return None if self.observer is None else self.observer.images_of(model)


class StepListener:
    """Hears the classifier during a step; while it is not known, watches the step to find it.

    Example:
        >>> import torch
        >>> module = nn.ModuleDict({"net": nn.Sequential(nn.Flatten(), nn.Linear(4, 2))})
        >>> listener = StepListener(ClassifierFinder("net", []))
        >>> listener.finder.look_up(module)
        >>> listener.start(module, Capture)
        >>> with torch.no_grad():
        ...     logits = module["net"](torch.ones(3, 1, 2, 2))
        >>> listener.stop().trace(3).logits.shape
        torch.Size([3, 2])
    """

    def __init__(self, finder: ClassifierFinder) -> None:
        self.finder = finder
        self._step = HeardStep()

    def start(
        self, pl_module: nn.Module, capture: Callable[[], Capture] | None, calling: Calling | None = None
    ) -> None:
        """Begin with a step.

        Args:
            pl_module: Whose step it is.
            capture: Says what the classifier's pass must keep; None where nobody wants to hear it.
            calling: Where the logits are, and the context in which later passes of the same trace run.
        """
        self.stop()
        if not self.finder.known:
            self._step = HeardStep(observer=Observer(pl_module, calling).__enter__())
        elif capture is not None:
            self._step = HeardStep(listener=Listener(self.finder.model, capture(), calling).__enter__())

    def stop(self) -> HeardStep:
        """End with the step, also in the middle of it.

        Returns:
            What was heard of it.
        """
        step, self._step = self._step, HeardStep()
        for context in (step.observer, step.listener):
            if context is not None:
                context.__exit__(None, None, None)
        return step
