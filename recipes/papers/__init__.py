"""What the reproduction of one paper alone needs, a folder a paper."""
