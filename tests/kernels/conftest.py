"""Kernels run compiled where there is a GPU, in Triton's interpreter elsewhere; the same tests hold for both.

The interpreter's bf16 arithmetic is wrong without a word, so there bf16 stands in no test that computes.
"""

import pytest
import torch

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")

GPU = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


def pytest_generate_tests(metafunc):
    """`dtype` runs over everything that can be trusted on this device."""
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if GPU else "cpu")
