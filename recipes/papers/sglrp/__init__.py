"""Iwana et al. 2019: softmax-gradient LRP."""
