"""Forward hooks, and another forward, inside a context: none after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registries
from torch.utils._pytree import tree_leaves, tree_map

from lightning_xai.trace.modes import bystander

Replacement: TypeAlias = Callable[[Callable[..., Any], Any, Any], Any]
"""Stands in for a forward: ``(forward, args, kwargs) -> output``."""


def hookable(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that take hooks.

    Args:
        model: The model.

    Returns:
        The modules, the model among them; none that are scripted.
    """
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


_OURS: set[int] = set()  # hooks that know how we run a model


@contextmanager
def forward_hooks(modules: Iterable[nn.Module], hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """Forward hooks ``(module, args, kwargs, output)`` on the modules inside, none after.

    Args:
        modules: Where to hook.
        hook: The hook; a value it returns replaces the output.
        before: Pre-hooks instead, ``(module, args, kwargs)``; a value they return replaces the arguments.
    """
    handles: list[Any] = []
    try:
        for module in modules:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(hook, with_kwargs=True))
            _OURS.add(handles[-1].id)
        yield
    finally:
        for handle in handles:
            handle.remove()
            _OURS.discard(handle.id)


@contextmanager
def hooks_apart(model: nn.Module) -> Iterator[None]:
    """Forward hooks that are not ours see inside what they see without us: no graph, and no operation replaced.

    They get copies without a graph. Only a hook that changes something, its output or a copy, takes part in the pass,
    and is called once more for that. Hooks of torch itself (sharding, weights made anew) are part of the model.

    Args:
        model: The model.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> handle = layer.register_forward_hook(lambda module, args, output: print(output.requires_grad))
        >>> with hooks_apart(layer):
        ...     output = layer(torch.ones(1, 1))
        False
        >>> output.requires_grad
        True
    """
    everywhere = [registries._global_forward_pre_hooks, registries._global_forward_hooks]
    own = [one for module in hookable(model) for one in (module._forward_pre_hooks, module._forward_hooks)]
    before = [(registry, dict(registry)) for registry in (*everywhere, *own) if registry]
    try:
        for registry, hooks in before:
            others = {key: hook for key, hook in hooks.items() if key not in _OURS and not _is_of_torch(hook)}
            registry.update({key: _apart(hook) for key, hook in others.items()})
        yield
    finally:
        for registry, hooks in before:
            registry.update({key: hook for key, hook in hooks.items() if key in registry})  # one may remove itself


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    return getattr(hook, "__module__", type(hook).__module__).startswith("torch.")


def _apart(hook: Callable[..., Any]) -> Callable[..., Any]:
    def watching(module: nn.Module, *values: Any) -> Any:
        with bystander():
            copies = tree_map(lambda one: one.detach().clone() if isinstance(one, Tensor) else one, values)
            versions = [one._version for one in tree_leaves(copies) if isinstance(one, Tensor)]
            changes = hook(module, *copies) is not None
            written = versions != [one._version for one in tree_leaves(copies) if isinstance(one, Tensor)]
        return hook(module, *values) if changes or written else None

    return watching


def is_image_batch(value: object) -> bool:
    """Whether a value looks like images (N,C,H,W) of a floating dtype.

    Args:
        value: Any argument of a forward.

    Returns:
        True if so.
    """
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


@contextmanager
def tapped(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer in the passes made inside, with their graph, in the order of its calls.

    The pass itself is unchanged. What is kept are copies, which in-place operations after the layer do not reach. A
    hook that was there before, such as that of a trace, acts first: gradients with respect to the activation that the
    trace keeps go through the tap.

    Args:
        layer: The module.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> with tapped(model[0]) as outputs:
        ...     _ = model(torch.tensor([[-1.0, 2.0]]))
        >>> outputs
        [tensor([[-1.,  2.]])]
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, kwargs: object, output: Tensor) -> None:
        outputs.append(output.clone())

    with forward_hooks([layer], keep):
        yield outputs


@dataclass
class AffineCall:
    """The last call of a linear or convolutional layer in a pass.

    Attributes:
        module: The layer; None before any call.
        output: A detached copy of what it gave.
    """

    module: nn.Linear | nn.Conv2d | None = None
    output: Tensor | None = None


@contextmanager
def last_affine_call(model: nn.Module) -> Iterator[AffineCall]:
    """Which linear or convolutional layer is called last in the passes made inside, and what it gives.

    The passes themselves are unchanged.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
        >>> with last_affine_call(model) as call:
        ...     _ = model(torch.ones(1, 1, 2, 2))
        >>> call.module
        Linear(in_features=4, out_features=2, bias=True)
    """
    call = AffineCall()

    def keep(module: nn.Linear | nn.Conv2d, args: object, kwargs: object, output: Tensor) -> None:
        call.module, call.output = module, output.detach().clone()  # an in-place ReLU may follow

    with forward_hooks((one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d))), keep):
        yield call


@dataclass
class _StandIn:
    """Called in place of a model's forward, which it hands on to what replaces it."""

    forward: Callable[..., Any]
    replacement: Replacement

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replacement(self.forward, args, kwargs)


def replacement_of(model: nn.Module) -> Replacement | None:
    """What stands in for a model's forward now.

    Args:
        model: The model.

    Returns:
        The replacement; None where it is the model's own.
    """
    stands_in = model.__dict__.get("forward")
    return stands_in.replacement if isinstance(stands_in, _StandIn) else None


@contextmanager
def replaced_forward(model: nn.Module, replacement: Replacement) -> Iterator[None]:
    """Another function in place of a model's forward inside, on this object alone.

    Args:
        model: The model.
        replacement: ``(forward, args, kwargs) -> output``, with the forward it stands in for.

    Example:
        >>> layer = nn.Identity()
        >>> with replaced_forward(layer, lambda forward, args, kwargs: forward(*args, **kwargs) + 1):
        ...     layer(torch.zeros(1))
        tensor([1.])
        >>> layer(torch.zeros(1))
        tensor([0.])
    """
    before = model.__dict__.get("forward")  # a model may have a forward of its own already: another listener's, say
    model.forward = _StandIn(model.forward, replacement)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
