"""Results in long form, a row for each value with named columns, and the tables that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_xai.metrics import compare
from lightning_xai.report import Cell, Table

if TYPE_CHECKING:
    from pandas import DataFrame


def interval(values: Any, seed: int = 0) -> Any:
    """Mean and bootstrap 95 % interval of the values that are there, by `lightning_xai.metrics.compare`.

    Args:
        values: One value for each image, or other unit, (N,); or of several networks, (S,N). NaN and None where there
            is none: such an image is left out of all networks.
        seed: Of the resampling.

    Returns:
        ``{"mean": ..., "low": ..., "high": ...}``, without width for one value; None for no values.

    Example:
        >>> interval([1.0, 1.0, float("nan")])
        {'mean': 1.0, 'low': 1.0, 'high': 1.0}
    """
    found = torch.from_numpy(np.array(values, dtype=np.float64))
    missing = found.isnan()
    known = found[..., ~(missing.any(0) if found.ndim == 2 else missing)]
    if known.ndim == 2 and len(known) == 1:
        known = known[0]  # one network: images are the unit
    if known.numel() < 2:
        return dict.fromkeys(("mean", "low", "high"), known.item()) if known.numel() else None
    made = compare(known, torch.zeros_like(known), n_resamples=2000, seed=seed)
    return {"mean": known.mean().item(), "low": made.low, "high": made.high}


def pivot(
    rows: DataFrame,
    index: str,
    columns: str,
    title: str,
    *,
    values: str = "value",
    cell: Callable[[Any], Cell] = interval,
    caption: str = "",
    digits: int = 1,
) -> Table:
    """A table from rows in long form: a line for each value of one column, a head for each of another.

    Args:
        rows: The rows.
        index: The column whose values name the lines, in the order in which they come.
        columns: The column whose values are the heads.
        title: Of the table.
        values: The column of the numbers.
        cell: What is shown of the numbers of a line and a head; a number as it is: ``lambda one: one.item()``.
        caption: What a reader must know.
        digits: Of the numbers.

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"method": ["a", "a", "b"], "metric": ["x", "x", "x"], "value": [1.0, 1.0, 4.0]})
        >>> pivot(rows, "method", "metric", "Means").rows
        [['a', {'mean': 1.0, 'low': 1.0, 'high': 1.0}], ['b', {'mean': 4.0, 'low': 4.0, 'high': 4.0}]]
    """
    heads: Sequence[Any] = rows[columns].unique()
    found = {key: cell(group) for key, group in rows.groupby([index, columns], sort=False)[values]}
    names = rows[index].unique()
    lines: list[list[Cell]] = [[str(name), *(found.get((name, head)) for head in heads)] for name in names]
    return Table(title, ["", *map(str, heads)], lines, caption, digits)
