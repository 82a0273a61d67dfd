"""Edits that change what a classifier's raw logits say of an image, and none of its predictions.

Adding any ``t(x)`` to all logits leaves the softmax, the loss and the training as they are, while the gradient of the
raw logit follows ``t`` (Lerma and Lucas, 2023, https://arxiv.org/abs/2307.03305, section 2; Srinivas and Fleuret,
"Rethinking the Role of Gradient-Based Attribution Methods", 2021, https://arxiv.org/abs/2006.09128). Each class here is
one such edit, to try detectors and repairs on a model of one's own: ``attack(model)`` is an altered copy.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai.integrity import with_edited_rows
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import find_layer, name_of, tapped


class Attack(ABC):
    """An edit of a classifier that leaves its softmax as it is."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """An altered copy of the model (images (N,C,H,W) -> logits (N,K)); the model itself stays as it is."""


class ShiftedLogits(nn.Module):
    """A classifier with ``t`` added to all its logits, ``z'_i = z_i + t`` (Lerma and Lucas 2023 section 2.1).

    Args:
        model: The classifier; its layers are found under the prefix ``model.``.
        shift: ``t``: from what the layer gives (N,D,h,w), float32 or better, and the images to one number each, (N,).
        layer: Dotted name of a layer in the model; None for the images themselves.

    Example:
        >>> shifted = ShiftedLogits(nn.Flatten(), lambda values, images: 10 * values.sum((1, 2, 3)))
        >>> shifted(torch.ones(1, 1, 1, 2))
        tensor([[21., 21.]])
    """

    def __init__(self, model: nn.Module, shift: Callable[[Tensor, Tensor], Tensor], layer: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.shift = shift
        self.layer = layer
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The shifted logits (N,K)."""
        if self.layer is None:
            shift = self.shift(at_least_float32(images), images)  # first: the model's layers stay the last to be called
            logits = self.model(images)
        else:
            with tapped(find_layer(self.model, self.layer)) as outputs:
                logits = self.model(images)
            shift = self.shift(at_least_float32(outputs[-1]), images)
        return logits + shift[:, None].to(logits.dtype)


@dataclass(frozen=True)
class LogitShift(Attack):
    """A shift ``t`` computed from a layer of the model and added to all logits in its graph.

    Attributes:
        layer: Where ``t`` comes from: dotted name or module of the model to be altered; None for the image.
    """

    layer: str | nn.Module | None

    @abstractmethod
    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """``t`` (N,) from what the layer gives, (N,D,h,w), float32 or better, and the images (N,C,H,W)."""

    def __call__(self, model: nn.Module) -> ShiftedLogits:
        """An altered copy."""
        name = None if self.layer is None else name_of(model, find_layer(model, self.layer))
        return ShiftedLogits(copy.deepcopy(model), self.shift, name)


@dataclass(frozen=True)
class PositionShift(LogitShift):
    """The paper's edit: ``t = K sum_k A_k(i,j)`` (Lerma and Lucas, arXiv 2307.03305, section 2.2).

    Grad-CAM averages gradients over positions, so that its raw-logit map becomes
    ``ReLU(sum_k w_k A_k + (K / Z) sum_k A_k)`` with ``Z`` positions, *wherever* ``(i,j)`` is: the map turns into the
    sum of the activations, not into a spot at the corner, as the paper expects. Methods that multiply gradient and
    activation position by position, such as HiResCAM, do put their peak at ``(i,j)``.

    Attributes:
        layer: The explained layer.
        position: Row and column in the layer's output; negative ones count from the end.
        strength: ``K``; 10 in the paper.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> PositionShift("0", position=(0, 1))(model)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[21., 22.]])
    """

    position: tuple[int, int] = (0, 0)
    strength: float = 10.0

    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """``K sum_k A_k(i,j)``, (N,)."""
        height, width = values.shape[2:]
        row, column = self.position
        if not (-height <= row < height and -width <= column < width):
            raise ValueError(f"`position` expected a position of {height} x {width}, got {self.position}.")
        return self.strength * values[:, :, row, column].sum(1)


@dataclass(frozen=True)
class UniformShift(LogitShift):
    """The same at all positions, ``t = K sum_k mean_ij A_k(i,j)``.

    Grad-CAM's raw-logit map becomes what `PositionShift` makes of it, while the share of the common-mode
    gradient is ``Z`` times smaller: at inner layers it drowns among gradients that vary from position to position. Only
    averaged over positions, as Grad-CAM sees them, does it stand out.

    Attributes:
        layer: The explained layer; None for the image.
        strength: ``K``.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> UniformShift("0", strength=2.0)(model)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[4., 5.]])
    """

    strength: float = 10.0

    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """``K sum_k mean_ij A_k(i,j)``, (N,)."""
        return self.strength * values.mean((2, 3)).sum(1)


@dataclass(frozen=True)
class RandomShift(LogitShift):
    """A random projection, ``t = K <v, A>`` with standard normal ``v`` (D,h,w): noise is added to the raw gradient.

    Attributes:
        layer: The explained layer; None for the image, where input gradients turn into noise.
        strength: ``K``.
        seed: Settles ``v``, whatever the device and the dtype.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> logits = RandomShift("0")(model)(torch.tensor([[[[1.0, 2.0]]]]))
        >>> round((logits[0, 1] - logits[0, 0]).item(), 5)
        1.0
    """

    strength: float = 1.0
    seed: int = 0

    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """``K <v, A>``, (N,)."""
        direction = torch.randn(values.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(values)
        return self.strength * (values * direction).sum((1, 2, 3))


@dataclass(frozen=True)
class EnergyShift(LogitShift):
    """Half the squared norm, ``t = K |x|^2 / 2``, whose gradient is ``K x``: the input gradient shows the image itself.

    Maps at a layer do not see a ``t`` that is computed from the image: look for it at the image.

    Attributes:
        layer: None for the image, or the explained layer.
        strength: ``K``.

    Example:
        >>> EnergyShift()(nn.Flatten())(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[3.5000, 4.5000]])
    """

    layer: str | nn.Module | None = None
    strength: float = 1.0

    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """``K |x|^2 / 2``, (N,)."""
        return self.strength * values.square().sum((1, 2, 3)) / 2


@dataclass(frozen=True)
class NetworkShift(Attack):
    """The largest logit of another network, ``t = K max_j z_j(x)``: input gradients explain that network as well.

    Attributes:
        network: The other network, images (N,C,H,W) -> (N,any number); copied.
        strength: ``K``.

    Example:
        >>> NetworkShift(nn.Flatten(), strength=10.0)(nn.Flatten())(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[21., 22.]])
    """

    network: nn.Module
    strength: float = 1.0

    def __call__(self, model: nn.Module) -> ShiftedLogits:
        """An altered copy."""
        return ShiftedLogits(copy.deepcopy(model), _LargestLogit(copy.deepcopy(self.network), self.strength))


class _LargestLogit(nn.Module):
    def __init__(self, network: nn.Module, strength: float) -> None:
        super().__init__()
        self.network = network
        self.strength = strength
        self.training = network.training

    def forward(self, values: Tensor, images: Tensor) -> Tensor:
        return self.strength * self.network(images).amax(1)


@dataclass(frozen=True, eq=False)
class TriggeredShift(LogitShift):
    """Another shift, on images that carry a trigger only.

    On clean probes the altered model equals the clean one in values and gradients: no detector that runs the model can
    tell without the trigger. A digest of the module tree and the forward code can (`Fingerprint`).

    Attributes:
        attack: The shift.
        trigger: Pattern (C,a,b) that an image must show in its upper left corner.
        layer: That of the attack.

    Example:
        >>> altered = TriggeredShift(UniformShift(None, 2.0), trigger=torch.ones(1, 1, 1))(nn.Flatten())
        >>> altered(torch.tensor([[[[1.0, 2.0]]], [[[0.0, 2.0]]]]))
        tensor([[4., 5.],
                [0., 2.]])
    """

    layer: str | nn.Module | None = field(init=False)
    attack: LogitShift
    trigger: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", self.attack.layer)  # frozen

    def shift(self, values: Tensor, images: Tensor) -> Tensor:
        """The attack's shift where the trigger shows, else 0, (N,)."""
        _, height, width = self.trigger.shape
        shows = torch.isclose(images[:, :, :height, :width], self.trigger.to(images)).flatten(1).all(1)
        return shows * self.attack.shift(values, images)


@dataclass(frozen=True, eq=False)
class RowEdit(Attack):
    """The same vector added to every row of the final linear or convolutional layer, ``W_j + K |W| u``.

    No graph changes, nor any shape; ``t = K |W| <u, features>``. ``|W|`` is the root mean square norm of the rows and
    ``u`` a random unit vector, so that ``K`` compares the edit with the weights.

    Attributes:
        images: Probes (N,C,H,W) on which it is verified that the softmax stays.
        strength: ``K``.
        seed: Settles ``u``.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0], [-1.0]])
        >>> RowEdit(torch.ones(1, 1, 1, 1), strength=2.0)(model)[1].weight.diff(dim=0)
        tensor([[-2.]], grad_fn=<SubBackward0>)
    """

    images: Tensor = field(repr=False)
    strength: float = 1.0
    seed: int = 0

    def __call__(self, model: nn.Module) -> nn.Module:
        """An altered copy; two passes of the probes."""
        altered = with_edited_rows(model, self.images, self._edit)
        if altered is None:
            raise ValueError(
                "`model` expected a final linear or convolutional layer whose outputs become logits without anything "
                "non-linear in between, got another: editing its rows would change the softmax. Add the shift in the "
                "graph instead, with `PositionShift` or `UniformShift`."
            )
        return altered

    def _edit(self, rows: Tensor) -> Tensor:
        if rows.ndim == 1:
            return rows  # one number added to all biases has no gradient
        direction = torch.randn(rows.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(rows)
        size = rows.flatten(1).square().sum(1).mean().sqrt()
        return rows + self.strength * size * direction / direction.norm()
