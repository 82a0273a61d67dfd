"""What every metric of explanations is: the contract with the callback that runs it."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_xai.log_keys import OVER_CONTROLS
from lightning_xai.metrics.sample import Sample

Need: TypeAlias = Literal["image_gradient", "masked_scores"]
"""What a metric may need of the pass: the graph from the scores to the image, or the scores of the masked images."""

Scope: TypeAlias = Literal["map", "methods", "model"]
"""What a metric speaks of: the maps of one method, several methods side by side, or the model alone."""


class Number(NamedTuple):
    """What one logged number is, for tables and charts.

    Attributes:
        title: What it is called.
        unit: Its unit, such as ``%``; empty for a number without one.
        higher_is_better: Which end is the good one; None where neither is.
        meaning: What it says, in a sentence.

    Example:
        >>> Number("Average drop", "%", False).label
        'Average drop, %; lower is better'
    """

    title: str
    unit: str = ""
    higher_is_better: bool | None = None
    meaning: str = ""

    @property
    def label(self) -> str:
        """Title, unit and direction in one line."""
        better = {None: "", True: "; higher is better", False: "; lower is better"}[self.higher_is_better]
        return ", ".join(filter(None, (self.title, self.unit))) + better


def in_words(name: str) -> str:
    """The name of a class as a title.

    Example:
        >>> in_words("AverageDrop")
        'Average drop'
    """
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


class ExplanationMetric(Metric):
    """A `torchmetrics.Metric` that a callback can run, and the base of a metric of your own.

    `measure` is handed what there is to know about one batch (`Sample`: maps, images, scores, ...) and calls the
    metric's own ``update``; so the metric works by itself too, without a Trainer. Whatever costs forward passes is an
    attribute of the sample: it is computed when it is first asked for, and once for all metrics. Where a metric is the
    mean of one number for each image, `ImageAverage` has ``update`` and ``compute`` already.

    Attributes:
        title: What the metric is called in tables and charts; the name of the class in words unless given.
        unit: Unit of the value, such as ``%``; empty for none.
        higher_is_better: Which end is the good one, as torchmetrics has it; None where neither is.
        numbers: For a metric whose ``compute()`` gives a dict: what each number is, by its name or the beginning of it.
        scope: ``map``: it is asked about each method's maps. ``methods``: it is asked once a batch, and compares the
            samples in ``sample.methods``. ``model``: it is asked once a batch, and reads no map.
        needs: What the forward pass must keep: ``image_gradient`` for ``sample.gradients``; ``masked_scores`` where
            images whose masked scores are not finite are to be left out of every metric.

    Example:
        >>> import torch
        >>> from lightning_xai.metrics import ImageAverage
        >>> class LargestValue(ImageAverage):
        ...     unit, higher_is_better, plot_upper_bound = "", None, None
        ...     def measure(self, sample):
        ...         self.update(sample.maps)
        ...     def update(self, maps):
        ...         self.add(maps.amax((1, 2)).double())
        >>> metric = LargestValue()
        >>> metric.update(torch.tensor([[[0.0, 1.0]], [[4.0, 2.0]]]))
        >>> metric.compute(), metric.title
        (tensor(2.5000, dtype=torch.float64), 'Largest value')
    """

    full_state_update = False
    is_differentiable = False

    title: str
    unit: str = ""
    numbers: ClassVar[Mapping[str, Number]] = {}
    scope: ClassVar[Scope] = "map"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "title" not in vars(cls):
            cls.title = in_words(cls.__name__)

    @abstractmethod
    def measure(self, sample: Sample) -> None:
        """Take from the sample what ``update`` wants, and update.

        Args:
            sample: One batch: for a ``map`` metric with the maps of one method, else with those of the first.
        """

    def plot(self, val: Any = None, ax: Axes | None = None, *, label: str = "") -> tuple[Figure | SubFigure, Axes]:
        """Draw what was measured, or results of ``compute()`` or ``forward()`` as numbers, several as a curve.

        Args:
            val: One result or a list of them; None to compute it.
            ax: Where to draw, such as the axes of another method; None for a new figure, of which pyplot knows nothing.
            label: Name of the curves, such as that of the method, where there are any.

        Returns:
            The figure and its axes.
        """
        ax = Figure(layout="constrained").subplots() if ax is None else ax
        if val is None:
            self.draw(ax, label)
        else:
            self._plot(val, ax)
        return ax.figure, ax

    def draw(self, ax: Axes, label: str) -> None:
        """Draw the number into axes; of a metric with curves, these."""
        self._plot(None, ax)


def number_of(metric: ExplanationMetric | type[ExplanationMetric], name: str | None = None) -> Number:
    """What a number of a metric is.

    Example:
        >>> from lightning_xai.metrics import ROAD, AverageDrop
        >>> number_of(AverageDrop).label, number_of(ROAD, "road_gap").label
        ('Average drop, %; lower is better', 'ROAD gap; higher is better')
    """
    beginnings = [key for key in metric.numbers if name is not None and name.startswith(key)]
    if beginnings:
        return metric.numbers[max(beginnings, key=len)]._replace(meaning=_summary(metric))
    title = metric.title if name is None else name.replace("_", " ")
    return Number(title, metric.unit, metric.higher_is_better, _summary(metric))


def number_named(name: str) -> Number:
    """What a logged number is, by its name alone: as readers of logs that another process wrote need it.

    Example:
        >>> number_named("AverageDrop").label, number_named("my_metric").label
        ('Average drop, %; lower is better', 'my metric')
        >>> number_named("AverageDrop_over_controls").label
        'Average drop: better than the best control by, %; higher is better'
    """
    if name.endswith(OVER_CONTROLS):
        inner = number_named(name.removesuffix(OVER_CONTROLS))
        meaning = "Below zero a control, which knows nothing of the class, does better."
        return Number(f"{inner.title}: better than the best control by", inner.unit, True, meaning)
    for metric in _kinds(ExplanationMetric):  # type: ignore[type-abstract]  # all kinds, abstract ones too
        if name == metric.__name__:
            return number_of(metric)
        if any(name.startswith(key) for key in metric.numbers):
            return number_of(metric, name)
    return Number(name.replace("_", " "))


def _kinds(metric: type[ExplanationMetric]) -> Iterator[type[ExplanationMetric]]:
    for kind in metric.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _summary(metric: ExplanationMetric | type[ExplanationMetric]) -> str:
    kind = metric if isinstance(metric, type) else type(metric)
    return (kind.__doc__ or "").strip().partition("\n")[0].replace("`", "")


class FromMetric(WrapperMetric, ExplanationMetric):
    """Any other metric of torchmetrics, given what of the sample its ``update`` takes.

    Args:
        metric: The metric.
        arguments: ``sample -> arguments of update by name``.
        title: What it is called; the name of the metric's class in words unless given.
        unit: Unit of its value.

    Example:
        >>> from torchmetrics import MaxMetric
        >>> metric = FromMetric(MaxMetric(), lambda sample: {"value": sample.maps})
        >>> metric.title
        'Max metric'
    """

    def __init__(
        self,
        metric: Metric,
        arguments: Callable[[Sample], Mapping[str, Any]],
        *,
        title: str | None = None,
        unit: str = "",
    ) -> None:
        super().__init__()
        self.metric = metric
        self.arguments = arguments
        self.title = title or in_words(type(metric).__name__)
        self.unit = unit

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # torchmetrics' own is a class attribute
        """As the metric has it."""
        return self.metric.higher_is_better

    def measure(self, sample: Sample) -> None:
        """Update the metric with what the function takes of the sample."""
        self.update(**self.arguments(sample))

    def update(self, *values: Any, **named: Any) -> None:
        """Update the metric."""
        self.metric.update(*values, **named)

    def compute(self) -> Any:
        """The metric's value."""
        return self.metric.compute()

    def reset(self) -> None:
        """Forget the batches."""
        super().reset()
        self.metric.reset()
