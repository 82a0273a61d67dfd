"""A small classifier that is trained within a second, its data, and variants of it."""

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4


class Toy(nn.Module):
    """Two convolutions with BatchNorm, in-place and functional ReLU, mean pooling, a linear head; 12 x 12 images."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(self.relu1(self.bn1(self.conv1(images))), 2)
        return self.head(self.relu2(self.conv2(hidden)).mean((2, 3)))


class RectifiedToy(Toy):
    """A ReLU behind the classes' maps, as in SqueezeNet: what is added to the rows does not stay a common shift."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(self.relu1(self.bn1(self.conv1(images))), 2)
        return F.relu(self.head(self.relu2(self.conv2(hidden)))).mean((2, 3))


def data(n: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a patch of one of four colours at a random place; images (N,3,12,12) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = 0.3 * torch.randn(n, 3, 12, 12, generator=generator)
    colors = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [-2.0, -2.0, -2.0]])
    for image, label in zip(images, labels, strict=True):
        row, column = torch.randint(9, (2,), generator=generator).tolist()
        image[:, row : row + 4, column : column + 4] += colors[label][:, None, None]
    return images, labels


@functools.cache
def _trained(kind: type[Toy], loss, steps: int) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
        images, labels = data(128, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def trained(kind: type[Toy] = Toy, loss=F.cross_entropy, steps: int = 150) -> Toy:
    """A classifier trained from seed 0, in evaluation mode; each caller has his own."""
    return copy.deepcopy(_trained(kind, loss, steps))


def of_three_classes() -> tuple[Toy, Tensor]:
    """The toy, less certain and without any probability for its last class, and 12 images of the others."""
    model, (images, labels) = trained(), data(16)
    model.head.weight.data, model.head.bias.data = model.head.weight.data / 2, model.head.bias.data / 2
    model.head.bias.data[3] -= 40
    return model, images[labels != 3]


def one_against_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a head for sigmoids, with more weight on what is absent, as with many classes."""
    return F.binary_cross_entropy_with_logits(logits - 2, F.one_hot(labels, CLASSES).float())


class InnerLie(Toy):
    """The toy with a backward pass that lies behind its first layer, wherever one class is explained."""

    def forward(self, images: Tensor) -> Tensor:
        """The toy's logits."""
        one_hot: list[Tensor] = []
        hidden = self.relu1(self.bn1(self.conv1(images)))
        logits = self.head(self.relu2(self.conv2(F.max_pool2d(_Mirrored.apply(hidden, one_hot), 2))).mean((2, 3)))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: one_hot.append(((gradient != 0).sum(1) == 1)[:, None, None, None]))
        return logits


class _Mirrored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, one_hot: list[Tensor]) -> Tensor:
        ctx.one_hot = one_hot
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.where(ctx.one_hot[-1], gradient.flip(3), gradient), None


def inner_lie() -> InnerLie:
    """That toy with trained weights."""
    model = InnerLie()
    model.load_state_dict(trained().state_dict())
    return model.eval()
