"""The guided rule of backpropagation, applied to the nodes of an autograd graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from lightning_xai.trace.rectifiers import Rectifiers, rectifiers_of


@contextmanager
def guided(outputs: Tensor, rectifiers: Rectifiers = "relu") -> Iterator[None]:
    """Backward passes from ``outputs`` follow the guided rule inside: no negative gradient enters a rectifier.

    ``du = sigma'(u) max(dv, 0)`` of ``v = sigma(u)`` (Springenberg et al., "Striving for Simplicity", 2015; "A Learning
    Paradigm for Interpretable Gradients", 2024, section 4.1), by hooks on the autograd nodes, however the activation
    was called: as a module, as a function or in place.

    The papers have ReLU alone, and nothing in the rule needs its kink. ``rectifiers="all"`` goes beyond them: ELU,
    SELU, CELU, GELU, SiLU, Mish, Softplus, Hardswish, LeakyReLU and PReLU count as well, and products written out as
    ``x * gate(x)``, such as quick-GELU. Gates are no rectifiers: sigmoids, softmax, attention of channels.

    Args:
        outputs: Tensor whose graph is walked.
        rectifiers: What counts as a rectifier: ``"relu"`` (ReLU, ReLU6, clamp and threshold at zero) or ``"all"``.

    Raises:
        ValueError: If the graph holds no rectifier, or too small a share of them (half).
        RuntimeError: If it holds nodes that may hide rectifiers (compiled regions, re-entrant checkpointing).

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = (torch.relu(x) * torch.tensor([-1.0, 1.0])).sum()
        >>> with guided(y):
        ...     torch.autograd.grad(y, x)[0]
        tensor([0., 1.])
    """
    # the nodes are looked up before the hooks are registered: none is left behind where the graph is refused
    handles = [node.register_prehook(_clamp) for node in rectifiers_of(outputs, rectifiers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _clamp(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient.clamp(min=0) for gradient in gradients)
