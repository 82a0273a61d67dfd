"""Image classifiers that explain themselves while they train: a PyTorch Lightning extension."""
