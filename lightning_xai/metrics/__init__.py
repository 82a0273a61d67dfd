"""Faithfulness metrics: a pure function, then its torchmetrics class."""
