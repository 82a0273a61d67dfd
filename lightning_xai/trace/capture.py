"""What a forward pass is asked to keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from lightning_xai.trace.interception import Interception
from lightning_xai.types import OneLayer


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
