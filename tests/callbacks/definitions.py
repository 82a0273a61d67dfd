"""The confidence metrics from their definitions, one image after the other, to compare with what is logged."""

from collections.abc import Callable

import torch
from callbacks.trainers import MEAN, STD
from torch import Tensor, nn

from lightning_xai import Attribution, explain


def by_hand(
    model: nn.Module,
    images: Tensor,
    method: Attribution,
    targets: Tensor | None = None,
    probability: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(1),
    baseline: Tensor | float = -MEAN[0] / STD[0],
) -> dict[str, float]:
    """Average Drop, Increase and Gain from their definitions, one image after the other."""
    model.eval()
    drops, increases, gains = [], [], []
    for i, image in enumerate(images[:, None]):
        with torch.no_grad():
            before = probability(model(image).double())[0]
        target = int(before.argmax()) if targets is None else int(targets[i])
        shown = explain(model, image, target, attributions=method).relu()
        mask = (shown - shown.min()) / (shown.max() - shown.min())
        with torch.no_grad():
            after = probability(model(image * mask + baseline * (1 - mask)).double())[0]
        p, o = before[target].item(), after[target].item()
        drops.append(max(0, p - o) / p)
        increases.append(o > p)
        gains.append(max(0, o - p) / (1 - p))
    values = {"AverageDrop": drops, "AverageIncrease": increases, "AverageGain": gains}
    return {name: 100 * sum(one) / len(one) for name, one in values.items()}
