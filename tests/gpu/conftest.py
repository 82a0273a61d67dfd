"""The arithmetic of these tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 as it is written, without TF32, and none of the modes that a test sets after it."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
    products = torch.backends.cuda.matmul.allow_tf32
    with flags:
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = products
            torch.use_deterministic_algorithms(False)
