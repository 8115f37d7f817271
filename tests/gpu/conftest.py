"""What runs on a CUDA device only. Without one each file says so when it is collected."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.ops.dispatch import ladders


@pytest.fixture(params=["auto", "triton"])
def implementation(request):
    """Everything as `auto` has it on this device, or by Triton's kernels, proven or not."""
    asked = [op for op, names in ladders().items() if request.param in names]
    with ops.backend(**dict.fromkeys(asked, request.param)):
        yield request.param


@pytest.fixture
def cuda():
    torch.manual_seed(0)
    return torch.device("cuda")
