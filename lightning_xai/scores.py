"""Scores and targets: which number is explained, and for which class.

A score is a plain function ``(logits (N,K), targets (N,)) -> (N,)``; `centered` and those of a softmax refuse a single
logit, of the others target 1 means that logit and target 0 its negative. All are computed in float32 or better and,
where a softmax is involved, in log space from the margin ``z_c - logsumexp_{j != c} z_j``, so that their gradients keep
full relative precision when the softmax saturates (``1 - p_c`` far below the spacing of floats at 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.types import Targets


def pre_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """The raw logit ``z_c`` of the target class.

    Adding any ``t(x)`` to all logits changes neither the softmax nor the training, but it changes this score and its
    gradient (Lerma and Lucas, "Pre or Post-Softmax Scores in Gradient-based Attribution Methods", 2023):
    prefer `centered` unless the raw logit itself is the question.

    Example:
        >>> pre_softmax(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([3.])
    """
    logits = at_least_float32(logits)
    if logits.shape[1] == 1:
        return logits[:, 0] * (2 * targets - 1)
    return logits.gather(1, targets[:, None])[:, 0]


def centered(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of the target class minus the mean logit, ``z_c - mean_j z_j``.

    A zero-sum score: its gradient does not see a shift ``t(x)`` added to all logits, and it does not saturate.
    DeepLIFT (Shrikumar et al., 2017) recommends the same normalisation for softmax outputs.

    The default of CAM and gradient methods, because the regions that its Grad-CAM and HiResCAM show keep more of the
    probability than those of `log_odds`: 9 to 22 points of the average drop on four networks
    (``recipes/papers/logit_shift/README.md``). Its price: whoever alters a model can steer it through classes without
    probability, to which `log_odds` is deaf; `inspect_model` says when their maps differ, and which stands apart.

    Example:
        >>> centered(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([1.])
    """
    _require_classes(logits, "centered")
    logits = at_least_float32(logits)
    return pre_softmax(logits, targets) - logits.mean(1)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of the target class against all others together, ``z_c - logsumexp_{j != c} z_j``.

    The log-odds of the softmax, ``log p_c - log(1 - p_c)``: the weighted contrast of Wang and Wang ("Why Not Other
    Classes?", NeurIPS 2022), with the softmax over the other classes for weights. A zero-sum score that does not
    saturate, and deaf to classes without probability, through which `centered` can be steered, where another class but
    the target has any. Its gradient is that of
    `log_softmax` divided by ``1 - p_c``: methods that are positively homogeneous in the gradient give the same maps up
    to scale. With two classes it is twice `centered`.

    Example:
        >>> log_odds(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([2.])
    """
    _require_classes(logits, "log_odds")
    logits = at_least_float32(logits)
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return pre_softmax(logits, targets) - others.logsumexp(1)


def log_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Log of the softmax probability, ``log p_c = logsigmoid(z_c - logsumexp_{j != c} z_j)``.

    The form by the margin keeps the gradient ``(1 - p_c)(e_c - softmax over the others)`` exact to float precision
    where the usual form rounds ``1 - p_c`` to zero.

    Example:
        >>> log_softmax(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([-0.6931])
    """
    _require_classes(logits, "log_softmax")
    return F.logsigmoid(log_odds(logits, targets))


def post_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """The softmax probability ``p_c``, as the exponential of `log_softmax`.

    Methods that are positively homogeneous in the gradient (Grad-CAM, Grad-CAM+, input and guided gradient) give
    the map of `log_softmax` times ``p_c``.

    Example:
        >>> post_softmax(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.5000])
    """
    return log_softmax(logits, targets).exp()


def log_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """Log of the probability of the target in one-logit and multi-label heads, ``logsigmoid(z_c)``.

    Example:
        >>> log_sigmoid(torch.tensor([[0.0]]), torch.tensor([1]))
        tensor([-0.6931])
    """
    return F.logsigmoid(pre_softmax(logits, targets))


def sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """The probability of the target in one-logit and multi-label heads, ``sigmoid(z_c)``, in log space.

    Example:
        >>> sigmoid(torch.tensor([[0.0]]), torch.tensor([1]))
        tensor([0.5000])
    """
    return log_sigmoid(logits, targets).exp()


def predicted(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """The class with the largest logit; with one logit, 1 where it is positive and else 0.

    Example:
        >>> predicted(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([1])
    """
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def label(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The label of each image.

    Raises:
        ValueError: If no labels are at hand, or if they are not one integer per image (multi-hot or soft labels).

    Example:
        >>> label(torch.zeros(1, 3), torch.tensor([2]))
        tensor([2])
    """
    if labels is None:
        raise ValueError("`targets=label` expected labels, got none. Use `predicted`, or pass the classes themselves.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"`targets=label` expected one integer per image, got {labels.dtype} of shape {tuple(labels.shape)}. "
            "For multi-hot or soft labels use `predicted`, a fixed class, or a function of your own."
        )
    return labels.long()


def second_best(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """The class with the second largest logit; with one logit, the side that is not predicted.

    Example:
        >>> second_best(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([2])
    """
    return 1 - predicted(logits) if logits.shape[1] == 1 else logits.topk(2).indices[:, 1]


def resolve_targets(targets: Targets, logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Turn what a user says about the classes to explain into one class per image.

    With logits (N,0), whose number of classes is not known yet, `require_classes` is left to the caller.

    Args:
        targets: None (predicted), a class for all images, one class per image (sequence or tensor (N,)), or a
            function ``(logits, labels) -> targets`` such as `predicted`, `label`, `second_best`.
        logits: Logits (N,K).
        labels: Labels of the images, for functions that want them.

    Returns:
        Targets (N,), int64, on the device of the logits; a copy.

    Raises:
        TypeError: If the targets are of another type.
        ValueError: If their number is not N or one of them is not a class.

    Example:
        >>> resolve_targets(1, torch.zeros(2, 3))
        tensor([1, 1])
    """
    n, k = logits.shape
    found = _as_tensor(targets, logits.detach(), labels)
    if not isinstance(found, Tensor) or found.is_meta or found.is_floating_point():
        kind = type(found).__name__ if not isinstance(found, Tensor) else f"{found.dtype} on {found.device}"
        raise TypeError(f"`targets` expected a function that gives integers (N,), got {kind}.")
    if found.shape != (n,):
        raise ValueError(f"`targets` expected one class for each of the {n} images, got shape {tuple(found.shape)}.")
    # a look at values waits for a GPU, and these are classes
    ours = any(targets is one for one in (None, predicted, second_best))
    if k and not ours:
        require_classes(found, k)
    return plain(found).to(logits.device, torch.long, copy=True)


def require_classes(targets: Tensor, k: int) -> None:
    """Check that targets (N,) are classes of a model with k logits; one logit stands for two.

    Raises:
        ValueError: If one is not.

    Example:
        >>> require_classes(torch.tensor([0, 1]), 1)
    """
    classes = max(k, 2)
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"`targets` expected classes in [0, {classes - 1}], got {wrong[0].item()}.")


def _as_tensor(targets: Targets, logits: Tensor, labels: Tensor | None) -> Tensor:
    if callable(targets) and not isinstance(targets, (Tensor, type)):
        return targets(logits, labels)
    if targets is None:
        return predicted(logits)
    if isinstance(targets, int):
        return torch.full((len(logits),), targets if targets.bit_length() < 63 else -1)
    whole = isinstance(targets, Sequence) and all(isinstance(one, int) for one in targets)
    if whole and targets and not isinstance(targets, bytes):
        targets = torch.tensor(targets)
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise TypeError(
            "`targets` expected None, an int, integers, an integer tensor or a function of logits and labels, "
            f"got {targets.dtype if isinstance(targets, Tensor) else type(targets).__name__}."
        )
    return targets


def plain(tensor: Tensor) -> Tensor:
    """The tensor itself, without a subclass that marks what torch functions give (MONAI's MetaTensor, tv_tensors).

    Subclasses that compute in their own way, such as distributed tensors, stay.

    Example:
        >>> class Marked(Tensor): ...
        >>> marked = torch.ones(1).as_subclass(Marked) + 1
        >>> type(marked).__name__, type(plain(marked)).__name__
        ('Marked', 'Tensor')
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _require_classes(logits: Tensor, score: str) -> None:
    if logits.shape[1] < 2:
        raise ValueError(
            f"`{score}` expected logits of at least 2 classes, got shape {tuple(logits.shape)}: it is constant for "
            "one logit. Use `score=sigmoid` or `pre_softmax` in methods, `log_probability=log_sigmoid` in callbacks."
        )
