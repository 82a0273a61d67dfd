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
    """A module that took images (N,C,H,W) and gave something like logits (N,K), or something else.

    Images and ``values``, those of the logits, are copies: the module may overwrite the ones, and the step the others.
    """

    module: nn.Module
    images: Tensor
    logits: Tensor | None
    values: Tensor | None
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
        self._begun: list[tuple[int, nn.Module, Tensor | None]] = []  # with a copy of the images
        self._count = 0
        self._first: tuple[int, Tensor] | None = None
        self._calls: list[_Call] = []
        self._features: list[Tensor] = []

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
        return next((call.images for call in self._calls if call.module is module), None)

    def logits_of(self, module: nn.Module) -> Tensor | None:
        """What the module gave then, (N,K); None if that is not clear, or if a hook of its own had yet to see it."""
        return next((call.values for call in self._calls if call.module is module and not module._forward_hooks), None)

    def calling_of(self, module: nn.Module) -> Calling:
        """How a module was called then, with its other arguments; as a plain classifier if there was no such call."""
        return next((call.calling for call in self._calls if call.module is module), self._calling)

    def last_spatial(self, model: nn.Module) -> nn.Module:
        """The last layer of ``model`` with a spatial output, found with the first image that it was given.

        Raises:
            ValueError: If there is none.
            RuntimeError: If no images were seen.
        """
        first = None if self._first is None else self._first[1]
        images = next((call.images for call in self._calls if call.module is model), first)
        if images is None:
            raise RuntimeError("`layer=None` expected a pass of images (N, C, H, W) to find the layer in, saw none.")
        return last_spatial_layer(model, images, self.calling_of(model))

    def _begin_directly(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not self._begun or self._begun[-1][1] is not module:
            self._begin(module, args, kwargs)
            return True
        place, _, images = self._begun[-1]  # called as a module, whose hooks tell, but for what is given by keyword
        self._begun[-1] = place, module, _copy_of_images(args, kwargs) if images is None else images
        return False

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if module in self._modules and in_own_pass() is self._own:
            self._begun.append((self._count, module, _copy_of_images(args, kwargs or {})))
            self._count += 1

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if module in self._modules and in_own_pass() is self._own:
            with bystander():  # the pass may be one that a listener intercepts
                place, before = self._begun_of(module)
                self._note_images(place, images_in(args, kwargs))
                # A function that the user passes is for the classifier, which is not known yet; and of two classifiers
                # side by side neither is the first.
                logits = None if has_several(output) else logits_of(output)
                self._note_call(module, args, kwargs, logits, before)

    def _begun_of(self, module: nn.Module) -> tuple[int, Tensor | None]:
        """When the call began that now ends, and its images; calls begun after it that never ended raised something."""
        while self._begun:
            place, begun, images = self._begun.pop()
            if begun is module:
                return place, images
        return -1, None  # before anybody watched

    def _note_images(self, place: int, images: Tensor | None) -> None:
        # What the first module is given are images; a head that takes feature maps later is no classifier.
        if images is not None and (self._first is None or place < self._first[0]):
            self._first = place, images

    def _note_call(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        logits: Tensor | None,
        before: Tensor | None,
    ) -> None:
        first = images = images_in(args, kwargs)
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
            copy = images if before is None or images is not first else before
            values = None if logits is None else logits.clone()
            self._calls.append(_Call(module, copy, logits, values, self._calling.heard(args, kwargs, images)))

    def _is_first(self, images: Tensor) -> bool:
        return self._first is not None and images is self._first[1]


def _copy_of_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    images = images_in(args, kwargs)
    if images is None:
        return None
    with bystander(), torch.inference_mode(False):
        return images.clone()


def _looks_like_logits(output: Tensor) -> bool:
    """Whether these are numbers (N,K), not probabilities."""
    return output.ndim == 2 and output.is_floating_point() and not sum_to_one(output)
