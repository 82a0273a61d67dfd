"""Finding the classifier in a LightningModule, and the layer where a method leaves the choice to us."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_xai.trace import Observer, find_layer
from lightning_xai.types import OneLayer


class ClassifierFinder:
    """Knows the classifier of one run, from its name or from a step that was observed.

    Args:
        name: Dotted name of the module that takes images and gives logits, ``"self"`` for the LightningModule; None to
            find it.
        layers: The layers that will be asked for; where one is None, the last with a spatial output is found, too.

    Attributes:
        automatic: The layer that was found; None where none was looked for.

    Example:
        >>> import torch
        >>> module = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))})
        >>> finder = ClassifierFinder(None, [None])
        >>> with Observer(module) as observer, torch.no_grad():
        ...     logits = module["net"](torch.rand(3, 1, 4, 4))
        >>> finder.find(observer)
        >>> finder.model is module["net"], finder.automatic
        (True, Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1)))
    """

    def __init__(self, name: str | None, layers: Iterable[OneLayer]) -> None:
        self.name = name
        self.automatic: nn.Module | None = None
        self._layers = tuple(layers)
        self._model: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The classifier.

        Raises:
            RuntimeError: If it was not found yet.
        """
        if self._model is None:
            raise RuntimeError("The classifier is known only from the first validation or test batch on.")
        return self._model

    @property
    def known(self) -> bool:
        """Whether nothing is left to be found."""
        return self._model is not None and (self.automatic is not None or not self._needs_automatic)

    def look_up(self, pl_module: nn.Module) -> None:
        """Take the classifier by its name, where it has one.

        Raises:
            ValueError: If there is no such module, or a layer does not exist in it; near names are listed.
        """
        if self.name is not None:
            # A step that calls `self.forward` passes by the module itself; Lightning's own examples do so.
            own = self.name == "self" and not hasattr(pl_module, "self")
            named = pl_module if own else find_layer(pl_module, self.name, argument="classifier")
            self._model = getattr(named, "_orig_mod", named)  # what torch.compile wraps: layers keep their names
            self._check_layers(self._model)

    def find(self, observer: Observer) -> None:
        """Take what is missing from a step that was observed.

        Raises:
            RuntimeError: If there is no classifier, or there are several.
            ValueError: If a layer does not exist.
        """
        model = self._model or observer.classifier()
        self._check_layers(model)
        if self._needs_automatic:
            self.automatic = observer.last_spatial(model)
        self._model = model

    def layer(self, layer: OneLayer) -> OneLayer:
        """A layer as it is to be asked for: the one that was found in place of None."""
        return self.automatic if layer is None else layer

    @property
    def _needs_automatic(self) -> bool:
        return any(layer is None for layer in self._layers)

    def _check_layers(self, model: nn.Module) -> None:
        for layer in self._layers:
            if layer is not None:
                find_layer(model, layer)
