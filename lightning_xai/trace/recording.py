"""One forward pass, and what is kept of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_xai.scores import plain
from lightning_xai.trace.attributes import attributes_detached
from lightning_xai.trace.calling import Calling
from lightning_xai.trace.capture import Capture
from lightning_xai.trace.hooks import forward_hooks, hookable, hooks_apart
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.modes import GraphKept, borrowed, plain_tensors
from lightning_xai.trace.places import Places
from lightning_xai.trace.tokens import Layouts, arranged
from lightning_xai.types import OneLayer, Tokens


class Recording:
    """What is kept of one forward pass.

    Args:
        model: The classifier.
        capture: What to keep.
        calling: How the pass is to be repeated with other images.
        images: What the model is given, (N,C,H,W).
        graph: The mode of the pass, which is told where the graph begins.

    Attributes:
        logits: What the model gave, (N,K); None where that was something else.
    """

    def __init__(self, model: nn.Module, capture: Capture, calling: Calling, images: Tensor, graph: GraphKept) -> None:
        self.model = model
        self.capture = capture
        self.calling = calling
        self.images = images
        self.logits: Tensor | None = None
        self._graph = graph
        self._layouts = Layouts(len(images))
        self._places = Places(model, images, calling, capture.layers.values())
        self._activations: dict[nn.Module, Tensor] = {}
        self._calls: Counter[nn.Module] = Counter()

    def activation(self, module: nn.Module) -> Tensor:
        """What a captured module gave, with the graph behind it.

        Raises:
            ValueError: If it was not called, or more than once.
        """
        name, calls = name_of(self.model, module), self._calls[module]
        if calls == 0:
            raise ValueError(
                f"`layer` {name!r} was not called in the forward pass. A container whose parts are called one by one "
                "is not: with timm's `set_grad_checkpointing(True)`, switch that off, else name a part."
            )
        if calls > 1:
            around = name.rpartition(".")[0]
            raise ValueError(
                f"`layer` {name!r} was called {calls} times in the forward pass, and has {calls} maps of each image. "
                f"Name a layer that is called once{around and f', such as {around!r} around it if that is'}; where a "
                "model runs a network on several views of an image, explain that network, on one view."
            )
        return self._activations[module]

    def arranged(self, module: nn.Module, values: Tensor, layer: OneLayer) -> Tensor:
        """What a captured module gave, or the gradient with respect to it, as (N,D,h,w).

        Raises:
            ValueError: If its places on the image are not known.
        """
        if isinstance(layer, Tokens):
            return arranged(values, layer, len(self.images))
        if self._layouts.is_map(module, values.shape):
            return values
        return arranged(values, self._places.of(module, values), len(self.images))

    def keep(self, module: nn.Module, args: Any, kwargs: Any, output: object) -> Tensor | None:
        """Forward hook: keep a copy that later in-place operations cannot reach, and start the graph here."""
        if isinstance(output, Tensor):
            self._layouts.note(module, output.shape)
        if module not in self.capture.layers.values():
            return None
        self._calls[module] += 1
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"`layer` {name_of(self.model, module)!r} expected an output of shape (N, D, h, w), got {shape}. "
                "Choose a layer before the pooling, or None for the last layer with a spatial output."
            )
        if len(self.images) not in output.shape[: 2 if output.ndim == 3 else 1]:  # tokens may come before images
            n, got = len(self.images), len(output)
            times = f", {got // n} times as many" if got % n == 0 else ""
            raise ValueError(
                f"`layer` {name_of(self.model, module)!r} expected an output for each of {n} images, got {got}{times}. "
                "A model that looks at several views of an image has no one map of it: explain the network inside, on "
                "one view. Of windows, name the layer around them."
            )
        self._graph.begin()
        # Below a frozen or gradient-free part the output has no history: it becomes the leaf where the graph starts.
        # Else it keeps its history, for methods that also want the gradient at the image or at an earlier layer.
        activation = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        self._activations[module] = activation
        return activation.clone()  # what follows may work on this one in place


def recorded(
    model: nn.Module,
    forward: Callable[..., Any],
    args: Any,
    kwargs: Any,
    images: Tensor,
    capture: Capture,
    calling: Calling,
    *,
    ours: bool = False,
) -> tuple[Any, Recording]:
    """One call of a model, with what is to be kept of it; its caller notices nothing.

    The graph starts at the captured layer (before it the pass is gradient-free) or at the image: no gradient of a
    parameter is ever computed. Whatever the caller's modes are, they are the same after; inside they are ours, because
    inference mode, in which validation runs, forbids any graph.

    Args:
        model: The classifier.
        forward: What is called: the model, or its forward.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        images: The images among these, (N,C,H,W).
        capture: What to keep.
        calling: How the output is understood, and the context of later passes.
        ours: Whether the images were made for this pass.

    Returns:
        The output, detached, and the recording.
    """
    interception = capture.own_interception
    from_image = capture.image_gradient or interception is not None
    begun = from_image or capture.create_graph
    # An interception hands on what it wants through gradient-free parts by itself.
    graph = GraphKept(begun)
    with torch.inference_mode(False), torch.set_grad_enabled(begun):
        args, kwargs, images, given = _own_copies(args, kwargs, images, from_image, capture.create_graph, ours)
        recording = Recording(model, capture, calling.heard(args, kwargs, given), images, graph)
        with (
            hooks_apart(model),
            attributes_detached(model),
            forward_hooks(hookable(model) if capture.layers else (), recording.keep),
            graph if interception is None else interception(model, given),
        ):
            output = forward(*args, **kwargs)
        recording.logits = calling.understood(output, len(images))
        # The caller gets copies: what it writes into them in place is not to reach the graph.
        return detached(output), recording


def detached(output: Any) -> Any:
    """A copy of an output without its graph, whatever its form: an object may have tensors as attributes, too."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        held = getattr(value, "__dict__", {})
        if isinstance(value, nn.Module) or not any(isinstance(one, Tensor) for one in held.values()):
            return value
        twin = copy.copy(value)
        twin.__dict__.update(detached(held))
        return twin

    return tree_map(copied, output)


def _own_copies(
    args: Any, kwargs: Any, images: Tensor, differentiate: bool, keep_graph: bool, ours: bool
) -> tuple[Any, Any, Tensor, Tensor]:
    """The arguments without inference tensors, the images of the trace, differentiable if asked, and the model's.

    The model's, which stand among the arguments, are a copy that it may overwrite.
    """
    own = plain(images if keep_graph else images.detach())
    own = own if ours and not (keep_graph or images.is_inference()) else own.clone()
    own = own if own.requires_grad else own.requires_grad_(differentiate)
    given = own.clone()

    def copied(one: Any) -> Any:
        if one is images:
            return given
        return one.clone() if isinstance(one, Tensor) and one.is_inference() else one

    args, kwargs = tree_map(copied, (args, kwargs))
    return args, kwargs, own, given


def predict(model: nn.Module, images: Tensor, calling: Calling | None = None, *, ours: bool = False) -> Tensor:
    """The logits of images in evaluation mode, without a graph.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        calling: As for `run`.
        ours: As for `run`; the model may overwrite them.

    Returns:
        Logits (N,K).

    Raises:
        ValueError: If the output is not (N,K).
    """
    calling = Calling() if calling is None else calling
    with borrowed(model), plain_tensors(), calling.context():
        images = plain(images)
        return calling.logits(model, images if ours else images.clone())  # which it may overwrite


def require_python_forward(model: nn.Module) -> None:
    """Check that calls of a model can be heard and can take part in a gradient.

    Raises:
        TypeError: If the model is scripted or traced.
        RuntimeError: If its parameters are inference tensors.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` expected a module written in Python, got a {type(model).__name__}, whose forward cannot be "
            "heard. Wrap it in a module whose forward calls it."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise RuntimeError(
            "The model's parameters were made in inference mode and cannot take part in a gradient. "
            "Create the model outside of it, for instance with Trainer(inference_mode=False)."
        )
