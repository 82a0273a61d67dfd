"""One forward pass and everything that is asked of it: the trace, and the two ways to get one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai.trace.calling import Calling, naming_images
from lightning_xai.trace.capture import Capture
from lightning_xai.trace.guided import guided
from lightning_xai.trace.hooks import forward_hooks
from lightning_xai.trace.interception import Interception
from lightning_xai.trace.modes import (
    alone_with,
    borrowed,
    differentiable_attention,
    eager,
    evaluation_mode,
    lent,
    own_pass,
)
from lightning_xai.trace.recording import Recording, predict, recorded, require_python_forward
from lightning_xai.trace.rectifiers import Rectifiers, graph_of
from lightning_xai.types import OneLayer, Score


class Trace:
    """One forward pass of N images: logits, captured activations, and gradients, each computed once.

    Made by `run` or by a `Listener`; handed to attributions.

    Args:
        recording: What was kept of the pass.
        logits: What the model gave, (N,K).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = run(model, torch.ones(1, 1, 4, 4), Capture({"1": model[1]}))
        >>> trace.logits.shape, trace.activation("1").shape
        (torch.Size([1, 2]), torch.Size([1, 2, 2, 2]))
    """

    def __init__(self, recording: Recording, logits: Tensor) -> None:
        self._begin(recording.model, recording.capture, recording.calling)
        self._recording = recording
        self._images = recording.images
        self._logits = logits

    def _begin(self, model: nn.Module, capture: Capture, calling: Calling) -> None:
        self._model = model
        self._capture = capture
        self._calling = calling
        self._noise_source: Tensor | None = None
        self._once = False
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
    def made_by(self) -> Any:
        """The node that made the logits; None without a graph."""
        return self._logits.grad_fn

    @property
    def nodes(self) -> set[Any]:
        """The nodes of the graph from the logits back to where it starts: the captured layers, or the image."""
        return graph_of(self._logits) if self.has_graph else set()

    @property
    def has_graph(self) -> bool:
        """Whether gradients can be asked of it: not where the logits were detached on their way."""
        return self._logits.requires_grad

    def module(self, layer: OneLayer) -> nn.Module:
        """The module that a captured layer stands for."""
        if layer not in self._capture.layers:
            raise RuntimeError(
                f"`layer` expected one of the captured layers, got {layer!r}. Name it in the attribution's `layers()`."
            )
        return self._capture.layers[layer]

    def activation(self, layer: OneLayer) -> Tensor:
        """The output of a captured layer; of tokens the patches, each at its place on the image (`Tokens`).

        Args:
            layer: As it was named in the capture.

        Returns:
            Activations (N,D,h,w).

        Raises:
            ValueError: If the layer was not called once, or the places of its output on the image are not known.
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
        """What the pass makes of seeds (N,K) at the logits: propagated back to the image, each image's own.

        Values (N,C,H,W): the gradient of ``(seeds * logits).sum()``, or what the interception puts in its place.

        Raises:
            ValueError: If the logits do not depend on the image.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return self._backward(self._logits, self._images, seeds.to(self._logits.dtype))

    def intercepted(self, interception: Interception) -> Trace:
        """The same images, with an interception in place of the model's operations.

        This trace where its pass ran so, else another: one forward pass, run once for all methods that ask.
        """
        if self._capture.own_interception == interception:
            return self
        if interception not in self._intercepted:
            self._intercepted[interception] = self.rerun(self.images, interception)
        return self._intercepted[interception]

    def rerun(
        self,
        images: Tensor,
        interception: Interception | None = None,
        *,
        rows: Tensor | None = None,
        noise_source: Tensor | None = None,
        once: bool = False,
    ) -> Trace:
        """A new trace of other images, with the same model, precision and other arguments.

        Args:
            images: Images (M,C,H,W), to be left as they are as long as the trace is in use.
            interception: What stands in for the model's operations; with None the same layers are captured.
            rows: As for `calling`.
            noise_source: Images that seed noise instead of these: a batch of another size rounds otherwise.
            once: Whether one gradient is asked of it, on whose way its graph may be freed.

        Returns:
            The trace; it costs one forward pass.
        """
        capture = self._capture
        if interception is not None:
            capture = Capture(interception=interception, create_graph=self.create_graph)
        trace = run(self._model, images, capture, self.calling(len(images), rows), ours=True)
        trace._noise_source, trace._once = noise_source, once
        self._see(trace, rows)
        return trace

    def _see(self, trace: Trace, rows: Tensor | None) -> None:
        """Look at a pass of other images: of these rows, None for all of them."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Mode in which maps are computed: in full precision, with gradients only if they are to be differentiable."""
        full = torch.autocast(self.images.device.type, enabled=False)
        with torch.inference_mode(False), torch.set_grad_enabled(self.create_graph), full, borrowed(self._model):
            yield

    def predict(self, images: Tensor, *, rows: Tensor | None = None, ours: bool = False) -> Tensor:
        """The logits (M,K) of other images, without a graph; arguments and errors as of `rerun` and `run`."""
        return predict(self._model, images, self.calling(len(images), rows), ours=ours)

    def logits_without(self, layer: OneLayer, channels: Tensor, *, rows: Tensor) -> Tensor:
        """The logits of images of this trace, each with one channel of a captured layer at zero.

        Args:
            layer: The layer, as it was named in the capture.
            channels: The channel that each of them lacks, (M,).
            rows: Which image each of them is, (M,).

        Returns:
            Logits (M,K); one forward pass.
        """
        source = self._source(layer)
        numbers = torch.arange(source[0].numel(), device=source.device).view_as(source[0]).expand_as(source)
        places = self._arranged(layer, numbers)[0].flatten(1)[channels]
        kept = source.new_ones(len(rows), source[0].numel()).scatter_(1, places, 0).view(-1, *source.shape[1:])
        with forward_hooks([self._capture.layers[layer]], lambda module, args, kwargs, output: output * kept):
            images = self.images[rows]
            return self.rerun(images, rows=rows).logits if self.create_graph else self.predict(images, rows=rows)

    def calling(self, n: int, rows: Tensor | None = None) -> Calling:
        """How the model is to be called with n other images made from these; ``rows`` and errors as of `rerun`."""
        calling, own = self._calling, len(self.images)
        if rows is not None:
            return calling.of(rows, own)
        if n != own and calling.has_rows(own):
            raise ValueError(
                f"`rows` expected the image of the trace that each of the {n} images was made from, got none: the "
                f"model takes other arguments with a row for each of {own} images, which have to stay with their own."
            )
        return calling

    def call(self, function: Callable[[nn.Module, Tensor, Tensor], Any], targets: Tensor) -> Any:
        """What a function makes of the model itself, for methods that are not ours.

        The function is called with gradients enabled and the model in evaluation mode; whatever it changes about the
        model is as before afterwards (`lent`). To the function the model takes images alone and gives logits.

        Args:
            function: ``(model, images (N,C,H,W), targets (N,)) -> anything``; its images are a copy that requires
                gradients.
            targets: Class to explain for each image, (N,).

        Returns:
            What the function returns.
        """
        model, calling = self._model, self._calling

        def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args, kwargs) if kwargs or len(args) != 1 else self.calling(len(args[0])).given(args[0])

        def take(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return calling.logits_of(output)

        with torch.inference_mode(False), torch.enable_grad(), eager(), alone_with(model), own_pass(), lent(model):
            images = self.images.clone().requires_grad_()
            arguments, logits = forward_hooks([model], give, before=True), forward_hooks([model], take)
            with evaluation_mode(model), arguments, logits, calling.context():
                return function(model, images, targets.clone())

    def _source(self, layer: OneLayer) -> Tensor:
        return self._recording.activation(self.module(layer))

    def _arranged(self, layer: OneLayer, values: Tensor) -> Tensor:
        return self._recording.arranged(self.module(layer), values, layer)

    def _gradient(self, score: Score, targets: Tensor, source: Tensor, rectifiers: Rectifiers | None = None) -> Tensor:
        key = (score, id(targets), id(source), rectifiers)
        if key not in self._gradients:
            with torch.inference_mode(False), torch.enable_grad():
                scores = score(self._logits, targets)
                if not isinstance(scores, Tensor) or scores.shape != targets.shape:
                    n, got = tuple(targets.shape), tuple(getattr(scores, "shape", (type(scores).__name__,)))
                    raise ValueError(f"`score` expected to give one number per image, {n}, got {got}.")
                with guided(self._logits, rectifiers) if rectifiers else nullcontext():
                    gradient = self._backward(scores, source)
            self._gradients[key] = gradient, targets  # the targets are kept so that their id stays theirs
        return self._gradients[key][0]

    def _backward(self, outputs: Tensor, source: Tensor, seeds: Tensor | None = None) -> Tensor:
        gradient = None
        if outputs.requires_grad:
            seeds = torch.ones_like(outputs) if seeds is None else seeds
            keep = self.create_graph or not self._once
            (gradient,) = torch.autograd.grad(outputs, source, seeds, keep, self.create_graph, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "`score` does not depend on the layer or image asked for: choose a layer before the logits, in a "
                "model that neither detaches them nor computes them under torch.inference_mode()."
            )
        return gradient

    def _plain(self, tensor: Tensor) -> Tensor:
        return tensor if self.create_graph else tensor.detach()


def run(
    model: nn.Module, images: Tensor, capture: Capture, calling: Calling | None = None, *, ours: bool = False
) -> Trace:
    """One forward pass in evaluation mode.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K).
        images: Images (N,C,H,W).
        capture: What to keep.
        calling: What else the model is given, where the logits are, and the context to run in; None for images alone.
        ours: Whether the images were made for this pass, so that nobody changes them later.

    Returns:
        The trace; the model is as before.

    Raises:
        ValueError: If the output is not (N,K).
        TypeError: If the model is scripted or traced.
        RuntimeError: If its parameters are inference tensors.
    """
    require_python_forward(model)
    calling = Calling() if calling is None else calling
    args, kwargs = calling.given(images)
    attention = differentiable_attention() if capture.create_graph else nullcontext()
    with borrowed(model), eager(), attention, calling.context(), naming_images(model, images):
        output, recording = recorded(model, model, args, kwargs, images, capture, calling, ours=ours)
    logits = recording.logits
    return Trace(recording, calling.found(output, len(images)) if logits is None else logits)
