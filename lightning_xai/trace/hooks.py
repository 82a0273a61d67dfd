"""Forward hooks inside a context: none after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registries
from torch.utils._pytree import tree_leaves, tree_map

from lightning_xai.trace.modes import bystander


def hookable(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that take hooks, itself among them; none that are scripted."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


_OURS: set[int] = set()  # hooks that know how we run a model
_CHANGING: set[int] = set()  # hooks of others that were seen to change something; no two hooks have the same number


@contextmanager
def forward_hooks(
    modules: Iterable[nn.Module] | None, hook: Callable[..., Any], *, before: bool = False
) -> Iterator[None]:
    """Forward hooks ``(module, args, kwargs, output)`` inside, none after; for calls that this thread makes.

    Args:
        modules: Where to hook. None for every module there is: these hooks are on no module, so that models can be
            copied, pickled and scripted meanwhile.
        hook: The hook; a value it returns replaces the output.
        before: Pre-hooks instead, ``(module, args, kwargs)``; a value they return replaces the arguments. Of every
            module they are ``(module, args)``.
    """
    handles: list[Any] = []
    try:
        for register in _places(modules, before):
            handles.append(register(_of_this_thread(hook)))
            _OURS.add(handles[-1].id)
        yield
    finally:
        for handle in handles:
            handle.remove()
            registries._global_forward_hooks_with_kwargs.pop(handle.id, None)  # the handle forgets this one
            _OURS.discard(handle.id)


def _places(modules: Iterable[nn.Module] | None, before: bool) -> list[Callable[..., Any]]:
    if modules is None:
        after = partial(registries.register_module_forward_hook, with_kwargs=True)
        return [registries.register_module_forward_pre_hook if before else after]
    return [
        partial(one.register_forward_pre_hook if before else one.register_forward_hook, with_kwargs=True)
        for one in modules
    ]


def _of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Another thread may use the model meanwhile: its passes are none of ours, nor are those that a compiler traces."""
    thread = get_ident()

    def ours(module: nn.Module, *values: Any) -> Any:
        if torch.compiler.is_compiling() or get_ident() != thread:
            return None
        return hook(module, *values)

    return ours


_APART = ContextVar("lightning_xai_hooks_apart", default=False)


@contextmanager
def hooks_apart(model: nn.Module) -> Iterator[None]:
    """Forward hooks that are not ours see inside what they see without us: no graph, and no operation replaced.

    They get copies without a graph. Only a hook that changes something, its output or a copy, takes part in passes: in
    that where it is found out it is called once more for that. Hooks of torch itself (sharding, weights made anew) are
    part of the model.

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
    # Where a pass in another thread, or one around this, set a hook apart already, it is the hook itself that comes
    # back: the order in which passes end does not matter.
    before = [(one, {key: _plain(hook) for key, hook in one.items()}) for one in (*everywhere, *own) if one]
    token = _APART.set(True)
    try:
        for registry, hooks in before:
            others = {key: hook for key, hook in hooks.items() if key not in _OURS | _CHANGING}
            registry.update({key: _Apart(key, hook) for key, hook in others.items() if not _is_of_torch(hook)})
        yield
    finally:
        _APART.reset(token)
        for registry, hooks in before:
            registry.update({key: hook for key, hook in hooks.items() if key in registry})  # one may remove itself


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    return getattr(hook, "__module__", type(hook).__module__).startswith("torch.")


@dataclass(frozen=True)
class _Apart:
    """A hook that watches passes of ours from outside, and takes part in all others."""

    key: int
    hook: Callable[..., Any]

    def __call__(self, module: nn.Module, *values: Any) -> Any:
        if not _APART.get() or self.key in _CHANGING:
            return self.hook(module, *values)
        with bystander():
            copies = tree_map(lambda one: one.detach().clone() if isinstance(one, Tensor) else one, values)
            versions = [one._version for one in tree_leaves(copies) if isinstance(one, Tensor)]
            changes = self.hook(module, *copies) is not None
            written = versions != [one._version for one in tree_leaves(copies) if isinstance(one, Tensor)]
        if not (changes or written):
            return None
        _CHANGING.add(self.key)
        return self.hook(module, *values)


def _plain(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook.hook if isinstance(hook, _Apart) else hook


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
