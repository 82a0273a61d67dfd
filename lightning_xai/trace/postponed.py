"""A pass that is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_xai.scores import plain
from lightning_xai.trace.calling import Calling
from lightning_xai.trace.capture import Capture
from lightning_xai.trace.trace import Trace, run


class Postponed(Trace):
    """One forward pass that waits until something of it is asked for.

    Methods that look at other images alone, `SmoothGrad` say, never ask, and save it. Whichever pass is made first is
    looked at before anything is computed from it.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        capture: What to keep of the pass.
        calling: How the model is called.
        look: Raises an error where a pass is not as it should be: ``(pass, of which images it is; None for all)``.
        logits: What is known of them without the pass, (N,K).

    Example:
        >>> import torch
        >>> model, images = nn.Sequential(nn.Flatten()), torch.ones(1, 1, 1, 2)
        >>> trace = Postponed(model, images, Capture(), Calling(), lambda trace, rows: print("made"))
        >>> trace.images.shape
        torch.Size([1, 1, 1, 2])
        >>> trace.logits
        made
        tensor([[1., 1.]])
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        capture: Capture,
        calling: Calling,
        look: Callable[[Trace, Tensor | None], None] | None = None,
        logits: Tensor | None = None,
    ) -> None:
        self._begin(model, capture, calling)
        self._given = plain(images.detach())
        self._look = look
        if logits is not None:
            self._logits = plain(logits.detach().clone())

    @property
    def images(self) -> Tensor:
        """What the model is given, (N,C,H,W)."""
        return self._given

    def __getattr__(self, name: str) -> Any:
        # what only the pass gives, and is missing until then
        if name not in ("_recording", "_images", "_logits"):
            raise AttributeError(name)
        made = run(self._model, self._given, self._capture, self._calling)
        self._recording, self._images, self._logits = made._recording, made._images, made._logits
        self._see(made, None)
        return self.__dict__[name]

    def _see(self, trace: Trace, rows: Tensor | None) -> None:
        look, self._look = self._look, None
        if look:
            look(trace, rows)
