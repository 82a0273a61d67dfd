"""Lerma and Lucas 2023: pre- or post-softmax scores."""
