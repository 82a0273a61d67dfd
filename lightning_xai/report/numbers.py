"""What logged numbers are: the parts that log them are asked."""

from __future__ import annotations

from lightning_xai.integrity import figure_named
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Number, number_named
from lightning_xai.regularization import TERM_NUMBERS

_USUAL = {
    "accuracy": Number("Accuracy", "", True),
    "acc": Number("Accuracy", "", True),
    "loss": Number("Loss", "", False),
}
"""What classifiers log themselves."""


def number_of_key(key: str) -> Number:
    """What the number under a key is.

    Example:
        >>> number_of_key("val/xai/gradcam/AverageDrop").label, number_of_key("val/my_metric").label
        ('Average drop, %; lower is better', 'my metric')
    """
    own = LogKey.parse(key)
    if own is None or own.metric is None:
        name = key.rpartition("/")[2]
        return _USUAL.get(name) or number_named(name)
    if own.stage == "train":
        return TERM_NUMBERS.get(own.metric) or number_named(own.metric)
    return figure_named(own.metric) or number_named(own.metric)
