"""Lerma and Lucas 2022: Grad-CAM++ and Grad-CAM with positive gradients."""
