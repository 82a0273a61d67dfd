"""Watching a pass: the classifier inside a LightningModule, the layers with a spatial output and the last of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_xai.trace.calling import Calling, has_several, images_in, is_image_batch, logits_of
from lightning_xai.trace.hooks import forward_hooks, hookable, hooks_apart
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.listener import Watcher
from lightning_xai.trace.modes import GraphKept, borrowed, bystander, eager, in_own_pass, plain_tensors
from lightning_xai.trace.probabilities import sum_to_one
from lightning_xai.trace.tokens import Shapes

_T = TypeVar("_T")


def last_spatial_layer(model: nn.Module, images: Tensor, calling: Calling | None = None) -> nn.Module:
    """The last layer with a spatial output, found by one gradient-free pass of the first image.

    Transformers take one more pass of it with a backward pass: their last tokens may reach the logits through the class
    token alone.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        calling: What else the model is given, where the logits are, and the context to run in; None for images alone.

    Returns:
        The module; a container counts when it is the last to finish, so that a ResNet gives ``layer4``.

    Raises:
        ValueError: If no layer has an output of more than one position, or the places of its tokens are not known.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> last_spatial_layer(model, torch.zeros(1, 1, 8, 8))
        ReLU()
    """
    calling = _for_the_first(images, calling)
    with borrowed(model), Observer(model, calling) as observer, plain_tensors(), calling.context():
        calling.logits(model, images[:1].clone())  # which it may overwrite
    return observer.last_spatial(model)


def _for_the_first(images: Tensor, calling: Calling | None) -> Calling:
    return (Calling() if calling is None else calling).of(torch.tensor([0]), len(images))


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
    """Context that watches which modules of a model take images, give logits, or give spatial outputs.

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
        self._outputs: list[tuple[nn.Module, torch.Size]] = []

    def __enter__(self) -> Observer:
        self._own = in_own_pass()  # made for a pass of our own: it watches that one; else it watches none of them
        self._stack.enter_context(eager())
        # On no module, so that the step may copy or script what it likes. But what `torch.compile` wraps warns of that.
        compiled = any(hasattr(module, "_orig_mod") for module in self._modules)
        modules = hookable(self._model) if compiled else None
        self._stack.enter_context(forward_hooks(modules, self._begin, before=True))
        self._stack.enter_context(forward_hooks(modules, self._note))
        if not self._own:  # steps may call `self.forward(images)`, which runs no hooks
            for module in [self._model, *self._model.children()]:
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

    def calling_of(self, module: nn.Module) -> Calling:
        """How a module was called then, with its other arguments; as a plain classifier if there was no such call."""
        return next((call.calling for call in self._calls if call.module is module), self._calling)

    def last_spatial(self, model: nn.Module) -> nn.Module:
        """The submodule of ``model`` that was the last to give an output of more than one position.

        Where such outputs are tokens, the logits must also depend on it through the patches; to find out, the first
        image takes one more pass and a backward pass.

        Raises:
            ValueError: If there is none, or the places of its tokens are not known.
            RuntimeError: If no images were seen.
        """
        first = None if self._first is None else self._first[1]
        images = next((call.images for call in self._calls if call.module is model), first)
        if images is None:
            raise RuntimeError("`layer=None` expected a pass of images (N, C, H, W) to find the layer in, saw none.")
        shapes, inside = Shapes(images), set(model.modules()) - {model}
        n = len(images)  # calls with other batches, such as those of another callback, are other passes
        outputs = [(module, shape) for module, shape in self._outputs if module in inside and shape[:1] == (n,)]
        for module, shape in outputs:
            shapes.note(module, shape)
        if shapes.has_tokens:
            return _last_with_patches(model, images, self.calling_of(model))
        found = [module for module, shape in _last_calls(outputs).items() if shapes.is_spatial(shape)]
        if not found:
            raise ValueError(
                "`layer=None` expected a layer with an output (N, D, h, w) of more than one position, found none. "
                "Name a layer, or use larger images."
            )
        return found[-1]

    def _begin_directly(self, module: nn.Module) -> bool:
        called = bool(self._begun) and self._begun[-1][1] is module  # as a module, whose hooks tell
        if not called:
            self._begin(module)
        return not called

    def _begin(self, module: nn.Module, *arguments: Any) -> None:
        if module in self._modules and in_own_pass() is self._own:
            self._begun.append((self._count, module))
            self._count += 1

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if module in self._modules and in_own_pass() is self._own:
            with bystander():  # the pass may be one that a listener intercepts
                self._note_images(self._place_of(module), images_in(args, kwargs))
                if isinstance(output, Tensor):
                    self._outputs.append((module, output.shape))
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


def _last_with_patches(model: nn.Module, images: Tensor, calling: Calling) -> nn.Module:
    """The last layer through whose patches the logits of the first image depend on that image.

    Nothing follows from the last patches of a model that pools by its class token; their way out is the attention
    before.
    """
    shapes = Shapes(images[:1])
    outputs: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: object, kwargs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.note(module, output.shape)
            outputs.append((module, output))

    calling = _for_the_first(images, calling)
    with borrowed(model), eager(), torch.inference_mode(False), torch.enable_grad(), GraphKept(begun=True):
        image = images[:1].detach().clone().requires_grad_()
        with forward_hooks(hookable(model), note), hooks_apart(model), calling.context():
            results = [calling.logits(model, image.clone())]  # which it may overwrite
        spatial = {one: output for one, output in _last_calls(outputs).items() if _may_explain(one, output, shapes)}
        dependence = _dependence(results, list(spatial.values()))
    for module, gradient in reversed(list(zip(spatial, dependence, strict=True))):
        if gradient.any() and shapes.arranged(gradient, name_of(model, module)).any():
            return module
    raise ValueError(
        "`layer=None` expected a layer of patches that the logits depend on, found none. Name a layer, in a model that "
        "does not compute its logits under torch.no_grad()."
    )


def _may_explain(module: nn.Module, output: Tensor, shapes: Shapes) -> bool:
    # Queries, keys and values are projections: each takes but a part of what attention gets from its input.
    return output.requires_grad and shapes.is_spatial(output.shape) and not isinstance(module, nn.Linear)


def _last_calls(outputs: list[tuple[nn.Module, _T]]) -> dict[nn.Module, _T]:
    """What each module gave in its last call, in the order of these."""
    last: dict[nn.Module, _T] = {}
    for module, output in outputs:
        last.pop(module, None)
        last[module] = output
    return last


def _dependence(results: list[Any], values: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of results with respect to values: NaN where there is a way from one to the other, else 0.

    NaN passes weights of 0, too, with which many heads begin.
    """
    results = [one for one in results if isinstance(one, Tensor) and one.requires_grad]
    if not results or not values:
        return tuple(map(torch.zeros_like, values))
    with torch.autograd.set_detect_anomaly(False):
        seeds = [torch.full_like(one, torch.nan) for one in results]
        return torch.autograd.grad(results, values, seeds, allow_unused=True, materialize_grads=True)


def _looks_like_logits(output: Tensor) -> bool:
    """Whether these are numbers (N,K), not probabilities."""
    return output.ndim == 2 and output.is_floating_point() and not sum_to_one(output)


def spatial_layers(model: nn.Module, images: Tensor, calling: Calling | None = None) -> list[str]:
    """The layers with a spatial output, in the order in which they finish, found by one gradient-free pass.

    Args:
        model: The classifier.
        images: Images (N,C,H,W), of which the first is passed.
        calling: As for `last_spatial_layer`.

    Returns:
        Dotted names of the modules that give (N,D,h,w) of more than one position.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> spatial_layers(model, torch.zeros(1, 1, 8, 8))
        ['0', '1']
    """
    names = {module: name for name, module in model.named_modules() if name}
    found: dict[str, None] = {}

    def note(module: nn.Module, args: object, kwargs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.pop(names[module], None)  # a module that is used again counts where it finishes last
            found[names[module]] = None

    calling = _for_the_first(images, calling)
    with forward_hooks(names, note), borrowed(model), plain_tensors(), calling.context():
        calling.logits(model, images[:1].clone())  # which it may overwrite
    return list(found)
