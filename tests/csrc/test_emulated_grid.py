"""Several CTAs at a time in the emulator: what depends on which of them gets on is seen, and so is a launch that hardware would refuse."""

import ctypes

import pytest

SEEDS = range(12)
SOURCE = r"""
#include "common/launch.cuh"
#include "common/ptx.cuh"

enum Fault { NONE, RELEASED_BEFORE_WRITTEN, NOBODY_WAITS, WAITS_FOR_THE_NEXT, NO_SYNCWARP_BEFORE_RELEASE, BLOCK_FOR_TICKET };

// Each CTA, in the order of tickets, doubles 32 numbers and adds its own number. The last one says nothing.
__global__ void in_turns(int32_t* ticket, int32_t* turn, float* out, int fault) {
    LMM_SHARED(int, mine, 1);
    const int lane = threadIdx.x;
    if (lane == 0) *mine = fault == BLOCK_FOR_TICKET ? static_cast<int>(blockIdx.x) : atomicAdd(ticket, 1);
    __syncthreads();
    const int number = *mine, awaited = fault == WAITS_FOR_THE_NEXT ? number + 1 : number;
    if (lane == 0 && fault != NOBODY_WAITS) lmm::wait_until(turn, awaited);
    __syncwarp();
    if (fault == RELEASED_BEFORE_WRITTEN && lane == 0) lmm::release(turn, number + 1);
    __syncthreads();
    out[lane] = 2 * out[lane] + static_cast<float>(number);
    if (fault != NO_SYNCWARP_BEFORE_RELEASE) __syncwarp();
    if (fault != RELEASED_BEFORE_WRITTEN && lane == 0) lmm::release(turn, number + 1);
}

__global__ void apart(float* out) {
    LMM_SHARED(float, fixed, 32);
    LMM_DYNAMIC_SHARED(float, dynamic);
    fixed[threadIdx.x] = blockIdx.x, dynamic[threadIdx.x] = -static_cast<float>(blockIdx.x);
    for (int i = 0; i < 5; ++i) __syncthreads();
    out[2 * (32 * blockIdx.x + threadIdx.x)] = fixed[31 - threadIdx.x];
    out[2 * (32 * blockIdx.x + threadIdx.x) + 1] = dynamic[31 - threadIdx.x];
}

template <int THREADS>
__global__ void __launch_bounds__(THREADS, 2) bounded(int* out) { out[threadIdx.x] = 1; }
__global__ void unbounded(int* out) { out[threadIdx.x] = 1; }

template <class Kernel>
cudaError_t launched(Kernel* kernel, int threads, size_t smem_bytes, size_t asked, uintptr_t stream, int* out) {
    simt::know(kernel);
    const void* symbol = reinterpret_cast<const void*>(kernel);
    if (asked) {
        const cudaError_t error = cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(asked));
        if (error != cudaSuccess) return error;
    }
    void* parameters[] = {&out};
    return cudaLaunchKernel(symbol, 1, threads, parameters, smem_bytes, reinterpret_cast<cudaStream_t>(stream));
}

extern "C" {
LMM_EXPORT const char* fault() { return simt::last_fault().c_str(); }
LMM_EXPORT int run_in_turns(int ctas, int32_t* ticket, int32_t* turn, float* out, int fault) {
    cudaError_t error;
    LMM_LAUNCH(error, (in_turns), ctas, 32, 0, nullptr, ticket, turn, out, fault);
    return error;
}
LMM_EXPORT int run_apart(float* out) {
    cudaError_t error;
    LMM_LAUNCH(error, (apart), 9, 32, 128, nullptr, out);
    return error;
}
LMM_EXPORT int run_bounded(int bounds, int threads, int* out) {
    if (bounds == 0) return launched(unbounded, threads, 0, 0, 0, out);
    return bounds == 96 ? launched(bounded<96>, threads, 0, 0, 0, out) : launched(bounded<256>, threads, 0, 0, 0, out);
}
LMM_EXPORT int run_with_shared(size_t bytes, size_t asked, int device, int* out) {
    lmm::DeviceGuard guard(device);
    return launched(bounded<32>, 32, bytes, asked, 0, out);
}
LMM_EXPORT int run_on(int device, uintptr_t stream, int expected_device, uintptr_t expected_stream, int* out) {
    simt::expected = {true, expected_device, reinterpret_cast<cudaStream_t>(expected_stream)};
    lmm::DeviceGuard guard(device);
    const int code = guard.error() != cudaSuccess ? guard.error() : launched(unbounded, 1, 0, 0, stream, out);
    simt::expected = {};
    return code;
}
}
"""
NONE, *FAULTS = range(6)
IDS = ["released_before_written", "nobody_waits", "waits_for_the_next", "no_syncwarp_before_release", "block_for_ticket"]


@pytest.fixture(scope="module")
def grid(host_library):
    library = host_library(SOURCE)
    library.fault.restype = ctypes.c_char_p
    library.run_with_shared.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    library.run_on.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p]
    return library


def _in_turns(grid, monkeypatch, seed, fault, resident=None, ctas=7):
    """What the CTAs leave, or the emulator's words."""
    monkeypatch.setenv("LMM_SIMT_SEED", str(seed))
    if resident:
        monkeypatch.setenv("LMM_SIMT_RESIDENT", str(resident))
    ticket, turn, out = ctypes.c_int32(0), ctypes.c_int32(0), (ctypes.c_float * 32)(*[1.0] * 32)
    code = grid.run_in_turns(ctas, ctypes.byref(ticket), ctypes.byref(turn), out, fault)
    return grid.fault().decode() if code else list(out)


def _expected(ctas=7):
    value = 1.0
    for number in range(ctas):
        value = 2 * value + number
    return [value] * 32


@pytest.mark.parametrize("resident", [None, 1, 3, 8])
def test_ctas_that_take_turns_leave_the_same_under_every_seed(grid, monkeypatch, resident):
    for seed in SEEDS:
        assert _in_turns(grid, monkeypatch, seed, NONE, resident) == _expected(), seed


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_between_ctas_is_seen_under_some_of_six_seeds(grid, monkeypatch, fault):
    assert any(_in_turns(grid, monkeypatch, seed, fault) != _expected() for seed in range(6))


def test_ctas_that_all_wait_for_others_are_a_deadlock_that_says_who_waits_where(grid, monkeypatch):
    said = _in_turns(grid, monkeypatch, 1, IDS.index("waits_for_the_next") + 1)
    assert "deadlock: each of the 3 CTAs" in said and "4 have no place to begin" in said and "waits for" in said and "found 0" in said


def test_waiting_for_a_cta_that_has_no_place_to_begin_is_a_deadlock(grid, monkeypatch):
    """With places for all it would not be."""
    monkeypatch.setenv("LMM_SIMT_SEED", "1")  # the last CTA begins first
    fault = IDS.index("block_for_ticket") + 1
    assert "deadlock" in _in_turns(grid, monkeypatch, 1, fault, resident=2)
    assert _in_turns(grid, monkeypatch, 1, fault, resident=8) == _expected()


def test_each_cta_has_shared_memory_of_its_own(grid, monkeypatch):
    for seed in SEEDS:
        monkeypatch.setenv("LMM_SIMT_SEED", str(seed))
        out = (ctypes.c_float * (9 * 64))()
        assert grid.run_apart(out) == 0
        assert list(out) == [value for block in range(9) for _ in range(32) for value in (block, -block)]


@pytest.mark.parametrize(("bounds", "threads", "refused"), [(96, 96, False), (96, 128, True), (256, 256, False), (256, 257, True), (0, 1024, False)])
def test_more_threads_than_the_launch_bounds_are_refused(grid, bounds, threads, refused):
    code = grid.run_bounded(bounds, threads, (ctypes.c_int * 1024)())
    assert (code == 701) == refused
    assert not refused or f"{threads} threads, the kernel's launch bounds are {bounds}" in grid.fault().decode()


def test_dynamic_shared_memory_above_48_kib_must_be_asked_for_on_each_device(grid):
    out = (ctypes.c_int * 32)()
    assert grid.run_with_shared(48 * 1024, 0, 0, out) == 0
    assert grid.run_with_shared(48 * 1024 + 16, 0, 0, out) == 1 and "at most 49152 were asked for" in grid.fault().decode()
    assert grid.run_with_shared(100_000, 90_000, 0, out) == 1
    assert grid.run_with_shared(100_000, 100_000, 0, out) == 0
    assert grid.run_with_shared(100_000, 0, 1, out) == 1, "asked for on the other device"
    assert grid.run_with_shared(163 * 1024 + 1, 163 * 1024 + 1, 0, out) == 1


def test_a_launch_on_another_stream_or_device_than_expected_is_refused(grid):
    out = (ctypes.c_int * 1)()
    assert grid.run_on(1, 0x5EED, 1, 0x5EED, out) == 0
    for device, stream in ((0, 0x5EED), (1, 0), (1, 0xBAD)):
        assert grid.run_on(device, stream, 1, 0x5EED, out) == 400
        assert "of device 1" in grid.fault().decode()
    assert grid.run_on(2, 0, 2, 0, out) == 101
