"""Lerma and Lucas 2023: shifts of the logits and what they do to maps."""
