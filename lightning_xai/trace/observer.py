"""Watching a step: the classifier inside a LightningModule."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_xai.trace.calling import Calling, has_several, images_in, is_image_batch, logits_of
from lightning_xai.trace.hooks import forward_hooks, hookable
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.listener import Watcher
from lightning_xai.trace.modes import bystander, eager, in_own_pass
from lightning_xai.trace.probabilities import sum_to_one
from lightning_xai.trace.spatial import last_spatial_layer


@dataclass(frozen=True)
class _Call:
    """A module that took images (N,C,H,W) and gave something like logits (N,K), or something else."""

    module: nn.Module
    images: Tensor
    logits: Tensor | None
    calling: Calling

    def is_sigmoid_of(self, other: _Call) -> bool:
        """Whether these are the other's logits, turned into probabilities by a module around it."""
        if self.logits is None or other.logits is None or self.logits.shape != other.logits.shape:
            return False
        return torch.allclose(self.logits.float(), other.logits.float().sigmoid(), atol=1e-2)


class Observer:
    """Context that watches which modules of a model take images and give logits.

    The passes themselves are unchanged, and so are the modules.

    Args:
        model: The model to watch, with all its submodules.
        calling: Where the logits are in the output of a classifier that the user names, and the context of later
            passes; None for outputs that `logits_of` understands.
    """

    def __init__(self, model: nn.Module, calling: Calling | None = None) -> None:
        self._model = model
        self._modules = set(model.modules())
        self._calling = Calling() if calling is None else calling
        self._stack = ExitStack()
        self._own = False
        self._begun: list[tuple[int, nn.Module]] = []
        self._count = 0
        self._first: tuple[int, Tensor] | None = None
        self._calls: list[_Call] = []
        self._features: list[Tensor] = []
        self._given: dict[int, tuple[Tensor, Tensor]] = {}  # images, with a copy made before a model overwrote them

    def __enter__(self) -> Observer:
        self._own = in_own_pass()  # made for a pass of our own: it watches that one; else it watches none of them
        self._stack.enter_context(eager())
        # On no module, so that the step may copy or script what it likes. But what `torch.compile` wraps warns of that.
        compiled = any(hasattr(module, "_orig_mod") for module in self._modules)
        modules = hookable(self._model) if compiled else None
        self._stack.enter_context(forward_hooks(modules, self._begin, before=True))
        self._stack.enter_context(forward_hooks(modules, self._note))
        if not self._own:  # steps may call `self.forward(images)`, which runs no hooks
            for module in [self._model, *(one for one in self._model.children() if any(True for _ in one.children()))]:
                if not isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "_orig_mod"):
                    self._stack.enter_context(Watcher(self._begin_directly, self._note).watching(module))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def classifier(self) -> nn.Module:
        """The outermost module that took images (N,C,H,W) and made logits (N,K) that nothing around it changes.

        Raises:
            RuntimeError: If there is none, or several that do not contain one another.
        """
        channels = None if self._first is None else self._first[1].shape[1]
        known = [call for call in self._calls if call.logits is not None and call.images.shape[1] == channels]
        calls = [call for call in known if not any(call.logits is one for one in self._features)]
        found = list(dict.fromkeys(call.module for call in calls if not any(map(call.is_sigmoid_of, calls))))
        inner = {part for one in found for part in one.modules() if part is not one}
        outer = [one for one in found if one not in inner]
        if len(outer) != 1:
            names = ", ".join(repr(name_of(self._model, module)) for module in outer) or "none"
            raise RuntimeError(
                "Expected one module that takes images (N, C, H, W) and gives logits (N, K), not probabilities, in the "
                f"validation step, found {names}. Name the right one, `classifier='model'` say."
            )
        logits = next(call.logits for call in calls if call.module is outer[0])
        # A wrapper that hands on what a module inside gave adds nothing but a prefix to the names of layers.
        return next(call.module for call in calls if call.logits is logits)

    def images_of(self, module: nn.Module) -> Tensor | None:
        """What the module was given in its first call as a classifier, (N,C,H,W); None if there was no such call."""
        return next((self._as_given(call.images) for call in self._calls if call.module is module), None)

    def logits_of(self, module: nn.Module) -> Tensor | None:
        """What the module gave then, (N,K); None if that is not clear."""
        return next((call.logits for call in self._calls if call.module is module), None)

    def calling_of(self, module: nn.Module) -> Calling:
        """How a module was called then, with its other arguments; as a plain classifier if there was no such call."""
        return next((call.calling for call in self._calls if call.module is module), self._calling)

    def last_spatial(self, model: nn.Module) -> nn.Module:
        """The last layer of ``model`` with a spatial output, found with the first image that it was given.

        Raises:
            ValueError: If there is none.
            RuntimeError: If no images were seen.
        """
        images = self.images_of(model)
        if images is None and self._first is not None:
            images = self._as_given(self._first[1])
        if images is None:
            raise RuntimeError("`layer=None` expected a pass of images (N, C, H, W) to find the layer in, saw none.")
        return last_spatial_layer(model, images, self.calling_of(model))

    def _as_given(self, images: Tensor) -> Tensor:
        return self._given.get(id(images), (images, images))[1]

    def _begin_directly(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        called = bool(self._begun) and self._begun[-1][1] is module  # as a module, whose hooks tell
        if not called:
            self._begin(module, args, kwargs)
        return not called

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if module in self._modules and in_own_pass() is self._own:
            self._begun.append((self._count, module))
            self._count += 1
            images = images_in(args, kwargs or {})
            channels = {given.shape[1] for given, _ in self._given.values()}
            if images is not None and id(images) not in self._given and images.shape[1] in (channels or images.shape):
                with bystander(), torch.inference_mode(False):
                    self._given[id(images)] = images, images.clone()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if module in self._modules and in_own_pass() is self._own:
            with bystander():  # the pass may be one that a listener intercepts
                self._note_images(self._place_of(module), images_in(args, kwargs))
                # A function that the user passes is for the classifier, which is not known yet; and of two classifiers
                # side by side neither is the first.
                logits = None if has_several(output) else logits_of(output)
                self._note_call(module, args, kwargs, logits)

    def _place_of(self, module: nn.Module) -> int:
        """When the call began that now ends; calls that were begun after it and never ended raised something."""
        while self._begun:
            place, begun = self._begun.pop()
            if begun is module:
                return place
        return -1  # before anybody watched

    def _note_images(self, place: int, images: Tensor | None) -> None:
        # What the first module is given are images; a head that takes feature maps later is no classifier.
        if images is not None and (self._first is None or place < self._first[0]):
            self._first = place, images

    def _note_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Tensor | None
    ) -> None:
        images = images_in(args, kwargs)
        if logits is not None and _looks_like_logits(logits):
            tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            given = [one for one in tensors if one.shape[:1] == logits.shape[:1]]
            # What another module turns into another number of columns was no logits.
            self._features += [one for one in given if one.ndim == 2 and one.shape[1] != logits.shape[1]]
            images = next((one for one in given if is_image_batch(one)), images)
        else:
            logits = None
        # Of calls that give something else those with the images are kept, one of which the user may name: not those
        # with feature maps, which would fill the memory.
        if images is not None and (logits is not None or self._is_first(images)):
            self._calls.append(_Call(module, images, logits, self._calling.heard(args, kwargs, images)))

    def _is_first(self, images: Tensor) -> bool:
        return self._first is not None and images is self._first[1]


def _looks_like_logits(output: Tensor) -> bool:
    """Whether these are numbers (N,K), not probabilities."""
    return output.ndim == 2 and output.is_floating_point() and not sum_to_one(output)
