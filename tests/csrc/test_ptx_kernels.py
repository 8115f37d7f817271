"""The checks that run first on a GPU, on the emulator's instructions: what they expect is right, and they see what is wrong."""

import pytest
import torch

from benchmarks.gpu import ptx


@pytest.fixture(scope="module")
def source():
    return ptx.SOURCE.read_text()


@pytest.fixture(scope="module")
def kernels(host_library, source):
    return ptx.Kernels(host_library(source), torch.device("cpu"))


def test_every_instruction_does_what_the_isa_says(kernels, simt_seed):
    found = {verdict.name: verdict.problem for verdict in ptx.verdicts(kernels)}
    assert len(found) == len(ptx.checks()) >= 14
    assert found == dict.fromkeys(found)


WRONG = {
    "b registers exchanged": ("unpack<uint2>(b_lane, b, lane);", "unpack<uint2>(b_lane, b, lane); std::swap(b_lane[0], b_lane[1]);", "mma"),
    "a registers exchanged": ("unpack<uint4>(a_lane, a, lane);", "unpack<uint4>(a_lane, a, lane); std::swap(a_lane[1], a_lane[2]);", "mma"),
    "trans left out": ("TRANSPOSED ? lmm::ldmatrix_x4_trans(found, row) :", "TRANSPOSED ? lmm::ldmatrix_x4(found, row) :", "ldmatrix x4 trans"),
    "no zero-fill": ("lmm::cp_async_16(smem + t, in + t, t < valid);", "if (t < valid) lmm::cp_async_16(smem + t, in + t, true);", "cp.async"),
    "group not waited for": ("lmm::cp_async_wait<0>();", "", "cp.async"),
    "released before written": (
        "    for (int i = threadIdx.x;",
        "    if (threadIdx.x == 0) lmm::release(turn, number + 1);\n    for (int i = threadIdx.x;",
        "acquire",
    ),  # fmt: skip
    "nobody waits": ("if (threadIdx.x == 0) lmm::wait_until(turn, number);", "", "acquire"),
    "one of four values not added": ("value + 3));", "value));", "red, four"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_instruction_fails_its_check_and_no_other(host_library, source, monkeypatch, fault):
    right, wrong, check = WRONG[fault]
    assert source.count(right) == 1
    kernels, failed = ptx.Kernels(host_library(source.replace(right, wrong)), torch.device("cpu")), set()
    for seed in range(4):
        monkeypatch.setenv("LMM_SIMT_SEED", str(seed))
        failed |= {verdict.name for verdict in ptx.verdicts(kernels) if verdict.problem}
    assert failed and all(name.startswith(check) for name in failed), failed
