"""What each number of a check is called, and what it says."""

from __future__ import annotations

from lightning_xai.metrics import Number

FIGURES = {
    "flagged": Number("Verdict: 1 where a logit shift or a false gradient is seen", "", False),
    "suspicion": Number(
        "Suspicion", "", False, "The largest share where maps look different; above a threshold a shift is reported."
    ),
    "differing": Number("Differing", "", False, "Part of the images whose raw and centred maps look different."),
    "worst_disagreement": Number("Worst disagreement", "", False, "Of any method on any image."),
    "nonlinearity": Number("Nonlinearity", "", False, "Of the backward pass: rounding alone, unless it is a lie."),
    "share": Number(
        "Share", "", False, "How much of the gradient at the explained layer all classes have in common: 0 none, 1 all."
    ),
    "pooled_share": Number("Pooled share", "", False, "The same of the gradient averaged over positions."),
    "mean_row": Number("Mean row", "", False, "Part of the final layer's weights that is the same for all classes."),
    "logit_residual": Number("Change of the logits", "", False, "Beyond what is added to all of them alike."),
    "logit_shift": Number("Change that all logits share", "", False, "What a softmax does not see."),
    "residual_gradient": Number("Change of the centred score's gradient", "", False),
    "shift_gradient": Number("Change of the mean logit's gradient", "", False),
}
"""By name in the log, in the order in which they are read."""

_ENDS = {
    "_disagreement": (False, "One minus the rank correlation of the raw logit's map and the centred score's."),
    "_zero-sum": (True, "Rank correlation with the reference's map of the centred score."),
    "_share": (False, "The same at another layer where maps are made, or at the image."),
    "_raw": (True, "Rank correlation with the reference's map of the raw logit."),
}


def figure_named(name: str) -> Number | None:
    """What a figure of a check is, by its name in the log.

    Args:
        name: The name: spaces are underscores, and those against a reference begin with ``reference_``.

    Returns:
        What it is; None for a name that no check logs.

    Example:
        >>> figure_named("reference_logit_shift").title
        'Against the reference: change that all logits share'
        >>> figure_named("Grad-CAM_disagreement").title
        'Grad-CAM disagreement'
    """
    if name.startswith("reference_"):
        inner = figure_named(name.removeprefix("reference_"))
        return inner and inner._replace(title=f"Against the reference: {inner.title[:1].lower()}{inner.title[1:]}")
    ends = (Number(name.replace("_", " "), "", *told) for end, told in _ENDS.items() if name.endswith(end))
    return FIGURES.get(name) or next(ends, None)
