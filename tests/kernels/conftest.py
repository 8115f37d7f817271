"""Kernels run compiled where there is a GPU, in Triton's interpreter elsewhere; the same tests hold for both.

The interpreter's bf16 arithmetic is wrong without a word, so there bf16 stands in no test that computes. A kernel is as exact as torch when its
error against fp64 is at most twice torch's own error in the same dtype.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Exactness:
    """Errors of the kernel and of torch against fp64; shown when the assertion fails."""

    kernel: float
    torch: float
    floor: float

    @property
    def holds(self) -> bool:
        return self.kernel <= 2 * self.torch + self.floor


@pytest.fixture(scope="session")
def as_exact_as_torch():
    """`as_exact_as_torch(kernel, torch, fp64)`: three results of one formula, tensors or tuples of them."""

    def check(kernel, own, exact, floor=1e-6):
        if isinstance(exact, torch.Tensor):
            kernel, own, exact = (kernel,), (own,), (exact,)
        for index, (k, t, e) in enumerate(zip(kernel, own, exact, strict=True)):
            assert k.dtype == t.dtype and k.shape == e.shape, (index, k.dtype, t.dtype, k.shape, e.shape)
            errors = [(x.double() - e).abs().max().item() if e.numel() else 0.0 for x in (k, t)]
            scale = max(1.0, e.abs().max().item() if e.numel() else 0.0)
            found = _Exactness(*errors, floor=floor * scale)
            assert found.holds, (index, found)

    return check
