"""One forward pass and everything that is asked of it: the trace, and the two ways to get one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_xai.trace.guided import guided
from lightning_xai.trace.hooks import forward_hooks, hookable, hooks_apart, is_image_batch, replaced_forward
from lightning_xai.trace.interception import Interception
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.modes import differentiable_attention, eager, evaluation_mode, lent, own_pass, plain_tensors
from lightning_xai.trace.rectifiers import Rectifiers, graph_of
from lightning_xai.trace.tokens import Shapes, arranged_as_given
from lightning_xai.types import ForwardContext, OneLayer, Score, Tokens


@dataclass(frozen=True)
class Capture:
    """What one forward pass must keep.

    Attributes:
        layers: The modules whose outputs are kept, by the name under which attributions ask for them.
        image_gradient: Whether the graph starts at the image.
        interception: What stands in for the model's operations, for methods that propagate by rules of their own.
        create_graph: Whether everything asked of the pass can itself be differentiated.
    """

    layers: dict[OneLayer, nn.Module] = field(default_factory=dict)
    image_gradient: bool = False
    interception: Interception | None = None
    create_graph: bool = False

    def __or__(self, other: Capture) -> Capture:
        """What both ask for; of two interceptions the first, and the other takes a pass of its own."""
        return Capture(
            self.layers | other.layers,
            self.image_gradient or other.image_gradient,
            self.interception or other.interception,
            self.create_graph or other.create_graph,
        )

    @property
    def needs_gradient(self) -> bool:
        """Whether plain gradients will be asked for."""
        return self.image_gradient or bool(self.layers)

    @property
    def needs_graph(self) -> bool:
        """Whether anything will be asked for that goes back through the pass."""
        return self.needs_gradient or self.interception is not None

    @property
    def own_interception(self) -> Interception | None:
        """What the pass itself runs under: an intercepted pass has no plain gradients, so that these come first."""
        return None if self.needs_gradient else self.interception


class Trace:
    """One forward pass of N images: logits, captured activations, and gradients, each computed once.

    Made by `run` or by a `Listener`; handed to attributions.

    Args:
        model: The classifier.
        capture: What the pass keeps.
        images: What the model is given, (N,C,H,W).
        context: Context in which later passes run.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = run(model, torch.ones(1, 1, 4, 4), Capture({"1": model[1]}))
        >>> trace.logits.shape, trace.activation("1").shape
        (torch.Size([1, 2]), torch.Size([1, 2, 2, 2]))
    """

    def __init__(self, model: nn.Module, capture: Capture, images: Tensor, context: ForwardContext) -> None:
        self._model = model
        self._capture = capture
        self._context = context
        self._images = images
        self._noise_source: Tensor | None = None
        self._shapes = Shapes(images)
        self._logits = images.new_empty(0)
        self._activations: dict[nn.Module, Tensor] = {}
        self._gradients: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._intercepted: dict[Interception, Trace] = {}

    @property
    def model(self) -> nn.Module:
        """The classifier."""
        return self._model

    @property
    def images(self) -> Tensor:
        """What the model was given, (N,C,H,W)."""
        return self._plain(self._images)

    @property
    def noise_source(self) -> Tensor:
        """The images (N,C,H,W) whose content seeds the noise of methods that draw any: those of the pass, as a rule."""
        return self.images if self._noise_source is None else self._noise_source

    @property
    def logits(self) -> Tensor:
        """What the model returned, (N,K)."""
        return self._plain(self._logits)

    @property
    def create_graph(self) -> bool:
        """Whether what the trace gives can be differentiated; detached else."""
        return self._capture.create_graph

    @property
    def nodes(self) -> set[Any]:
        """The nodes of the graph from the logits back to where it starts: the captured layers, or the image."""
        return graph_of(self._logits) if self.has_graph else set()

    @property
    def has_graph(self) -> bool:
        """Whether gradients can be asked of it: not where the logits were detached on their way."""
        return self._logits.requires_grad

    def activation(self, layer: OneLayer) -> Tensor:
        """The output of a captured layer; where the layer was called several times, of its last call.

        Of tokens the patches are given, each at its place on the image (`Shapes`, `Tokens`).

        Args:
            layer: As it was named in the capture.

        Returns:
            Activations (N,D,h,w).

        Raises:
            ValueError: If the layer was not called, or the places of its output on the image are not known.
        """
        return self._arranged(layer, self._plain(self._source(layer)))

    def gradient(self, score: Score, targets: Tensor, *, of: OneLayer) -> Tensor:
        """The gradient of each image's score with respect to a captured layer, computed once.

        Args:
            score: The number per image that is explained.
            targets: Class to explain for each image, (N,).
            of: The layer, as it was named in the capture.

        Returns:
            Gradients (N,D,h,w).

        Raises:
            ValueError: If the score does not give one number per image or does not depend on the layer.
        """
        return self._arranged(of, self._gradient(score, targets, self._source(of)))

    def image_gradient(self, score: Score, targets: Tensor, *, rectifiers: Rectifiers | None = None) -> Tensor:
        """The gradient of each image's score with respect to the image, computed once.

        Args:
            score: The number per image that is explained.
            targets: Class to explain for each image, (N,).
            rectifiers: Clamp the gradient that enters each of these at zero (`guided`); None for the plain gradient.

        Returns:
            Gradients (N,C,H,W).

        Raises:
            RuntimeError: If the capture did not ask for the image's gradient.
            ValueError: If the score does not give one number per image, or for a guided gradient without enough
                rectifiers.
        """
        if not self._images.requires_grad:
            raise RuntimeError(
                "`image_gradient` expected a trace whose graph starts at the image. "
                "Set `needs_image_gradient = True` in the attribution that calls it."
            )
        return self._gradient(score, targets, self._images, rectifiers)

    def propagate(self, seeds: Tensor) -> Tensor:
        """What the pass makes of seeds at the logits: propagated back to the image, each image's own.

        Args:
            seeds: One number for each logit, (N,K).

        Returns:
            Values (N,C,H,W): the gradient of ``(seeds * logits).sum()``, or what the interception puts in its place.

        Raises:
            ValueError: If the logits do not depend on the image.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return self._backward(self._logits, self._images, seeds.to(self._logits.dtype))

    def intercepted(self, interception: Interception) -> Trace:
        """The same images, with an interception in place of the model's operations.

        Args:
            interception: What stands in for the operations.

        Returns:
            This trace where its pass ran so, else another: one forward pass, run once for all methods that ask.
        """
        if self._capture.own_interception == interception:
            return self
        if interception not in self._intercepted:
            self._intercepted[interception] = self.rerun(self._images, interception)
        return self._intercepted[interception]

    def rerun(
        self, images: Tensor, interception: Interception | None = None, *, noise_source: Tensor | None = None
    ) -> Trace:
        """A new trace of other images, with the same model and precision.

        Args:
            images: Images (N,C,H,W).
            interception: What stands in for the model's operations; with None the same layers are captured.
            noise_source: Images whose content seeds noise in the place of these, where these were computed: a batch of
                another size rounds otherwise, and another last bit is another noise.

        Returns:
            The trace; it costs one forward pass.
        """
        capture = self._capture
        if interception is not None:
            capture = Capture(interception=interception, create_graph=self.create_graph)
        trace = run(self._model, images, capture, self._context)
        trace._noise_source = noise_source
        return trace

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Mode in which maps are computed: in full precision, with gradients only if they are to be differentiable."""
        full = torch.autocast(self._images.device.type, enabled=False)
        with torch.inference_mode(False), torch.set_grad_enabled(self.create_graph), full:
            yield

    def predict(self, images: Tensor) -> Tensor:
        """The logits of other images, without a graph.

        Args:
            images: Images (N,C,H,W).

        Returns:
            Logits (N,K).
        """
        return predict(self._model, images, self._context)

    def call(self, function: Callable[[nn.Module, Tensor, Tensor], Any], targets: Tensor) -> Any:
        """What a function makes of the model itself, for methods that are not ours.

        The function is called with gradients enabled and the model in evaluation mode; whatever it changes about the
        model is as before afterwards (`lent`).

        Args:
            function: ``(model, images (N,C,H,W), targets (N,)) -> anything``; its images are a copy that requires
                gradients.
            targets: Class to explain for each image, (N,).

        Returns:
            What the function returns.
        """
        with torch.inference_mode(False), torch.enable_grad(), own_pass(), eager(), lent(self._model):
            images = self.images.clone()
            images = images if images.requires_grad else images.requires_grad_()
            with evaluation_mode(self._model), self._context():
                return function(self._model, images, targets.clone())

    def _source(self, layer: OneLayer) -> Tensor:
        if layer not in self._capture.layers:
            raise RuntimeError(
                f"`layer` expected one of the captured layers, got {layer!r}. Name it in the attribution's `layers()`."
            )
        module = self._capture.layers[layer]
        if module not in self._activations:
            raise ValueError(f"`layer` {name_of(self._model, module)!r} was not called in the forward pass.")
        return self._activations[module]

    def _arranged(self, layer: OneLayer, values: Tensor) -> Tensor:
        if isinstance(layer, Tokens):
            return arranged_as_given(values, layer)
        return self._shapes.arranged(values, name_of(self._model, self._capture.layers[layer]))

    def _gradient(self, score: Score, targets: Tensor, source: Tensor, rectifiers: Rectifiers | None = None) -> Tensor:
        key = (score, id(targets), id(source), rectifiers)
        if key not in self._gradients:
            with torch.inference_mode(False), torch.enable_grad():
                scores = score(self._logits, targets)
                _check_scores(scores, targets)
                with guided(self._logits, rectifiers) if rectifiers else nullcontext():
                    gradient = self._backward(scores, source)
            self._gradients[key] = gradient, targets  # the targets are kept so that their id stays theirs
        return self._gradients[key][0]

    def _backward(self, outputs: Tensor, source: Tensor, seeds: Tensor | None = None) -> Tensor:
        gradient = None
        if outputs.requires_grad:
            seeds = torch.ones_like(outputs) if seeds is None else seeds
            (gradient,) = torch.autograd.grad(
                outputs, source, seeds, retain_graph=True, create_graph=self.create_graph, allow_unused=True
            )
        if gradient is None:
            raise ValueError(
                "`score` does not depend on the layer or image asked for: choose a layer before the logits, in a "
                "model that neither detaches them nor computes them under torch.no_grad()."
            )
        return gradient

    def _plain(self, tensor: Tensor) -> Tensor:
        return tensor if self.create_graph else tensor.detach()

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: object) -> Tensor | None:
        """Forward hook: keep a copy that later in-place operations cannot reach, and start the graph here."""
        if isinstance(output, Tensor):
            self._shapes.note(module, output.shape)
        if module not in self._capture.layers.values():
            return None
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"`layer` {name_of(self._model, module)!r} expected an output of shape (N, D, h, w), got {shape}. "
                "Choose a layer before the pooling, or None for the last layer with a spatial output."
            )
        torch.set_grad_enabled(True)  # until the end of the shadowed forward, which restores the mode
        activation = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        self._activations[module] = activation
        return activation.clone()


def run(model: nn.Module, images: Tensor, capture: Capture, context: ForwardContext = nullcontext) -> Trace:
    """One forward pass in evaluation mode.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K).
        images: Images (N,C,H,W).
        capture: What to keep.
        context: Context to run the model in, such as a precision plugin's autocast.

    Returns:
        The trace; the model is as before.

    Raises:
        ValueError: If the output is not (N,K).
        TypeError: If the model is scripted or traced.
        RuntimeError: If its parameters are inference tensors.
    """
    require_python_forward(model)
    traces: list[Trace] = []

    def record(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output, trace = recorded(model, forward, args, kwargs, capture, context)
        traces.extend([] if trace is None else [trace])
        return output

    attention = differentiable_attention() if capture.create_graph else nullcontext()
    stands_in = replaced_forward(model, record)
    with own_pass(), eager(), evaluation_mode(model), stands_in, attention, torch.no_grad(), context():
        output = model(images)
    if not traces:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"`model` expected to give logits (N, K) = ({len(images)}, K), got {shape}. "
            "Wrap it in a module whose forward returns the logits alone."
        )
    return traces[0]


def recorded(
    model: nn.Module,
    forward: Callable[..., Any],
    args: Any,
    kwargs: Any,
    capture: Capture,
    context: ForwardContext,
) -> tuple[Any, Trace | None]:
    """One call of a model's forward, with what is to be kept of it; its caller notices nothing.

    The graph starts at the captured layer (before it the pass is gradient-free) or at the image. Calls made with
    gradients enabled or without images are left alone: they are somebody's training, or no classifier's.

    Args:
        model: The classifier.
        forward: Its forward.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        capture: What to keep.
        context: Context in which later passes of the same trace run (`Trace.rerun`).

    Returns:
        The output, detached, and the trace; None where there is none, as for outputs other than logits (N,K).
    """
    if torch.is_grad_enabled() or not any(is_image_batch(one) for one in (*args, *kwargs.values())):
        return forward(*args, **kwargs), None
    interception = capture.own_interception
    from_image = capture.image_gradient or interception is not None
    with torch.inference_mode(False), torch.set_grad_enabled(from_image or capture.create_graph):
        args, kwargs, images, given = _own_copies(args, kwargs, from_image, capture.create_graph)
        trace = Trace(model, capture, images, context)
        with (
            hooks_apart(model),
            forward_hooks(hookable(model) if capture.layers else (), trace._keep),
            nullcontext() if interception is None else interception(model, given),
        ):
            output = forward(*args, **kwargs)
        is_logits = isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(images)
        if is_logits:
            trace._logits = output
        # The caller gets copies: what it writes into them in place is not to reach the graph.
        copies = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, output)
        return copies, trace if is_logits else None


def predict(model: nn.Module, images: Tensor, context: ForwardContext = nullcontext) -> Tensor:
    """The logits of images in evaluation mode, without a graph.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        context: Context to run the model in.

    Returns:
        Logits (N,K).
    """
    with own_pass(), evaluation_mode(model), plain_tensors(), context():
        return model(images.clone())  # which it may overwrite


def require_python_forward(model: nn.Module) -> None:
    """Check that calls of a model can be heard and can take part in a gradient.

    Args:
        model: The model.

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


def _own_copies(args: Any, kwargs: Any, differentiate: bool, keep_graph: bool) -> tuple[Any, Any, Tensor, Tensor]:
    """The arguments without inference tensors, the images of the trace, differentiable if asked, and the model's.

    The model's, which stand among the arguments, are a copy that it may overwrite.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def copy(value: Any) -> Any:
        if is_image_batch(value) and not found:
            images = (value if keep_graph else value.detach()).clone()
            images = images if images.requires_grad else images.requires_grad_(differentiate)
            found.append((images, images.clone()))
            return found[0][1]
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    args, kwargs = tree_map(copy, (args, kwargs))
    return args, kwargs, *found[0]


def _check_scores(scores: Tensor, targets: Tensor) -> None:
    if scores.shape != targets.shape:
        raise ValueError(
            f"`score` expected to give one number per image, {tuple(targets.shape)}, got {tuple(scores.shape)}."
        )
