"""The emulator that the kernels are tested in: its instructions against numpy, and that it sees what is wrong in wrong kernels.

Fragment layouts are written down from the PTX ISA ("Matrix fragments for mma.m16n8k16", "ldmatrix"), element by element, and not from our headers.
"""

import ctypes

import numpy as np
import pytest
import torch

SOURCE = r"""
#include "common/launch.cuh"
#include "common/ptx.cuh"

template <class T>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
    const int lane = threadIdx.x;
    uint32_t a_lane[4], b_lane[2];
    float d_lane[4];
    for (int i = 0; i < 4; ++i) a_lane[i] = a[4 * lane + i], d_lane[i] = d[4 * lane + i];
    for (int i = 0; i < 2; ++i) b_lane[i] = b[2 * lane + i];
    lmm::mma_m16n8k16<T>(d_lane, a_lane, b_lane);
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = d_lane[i];
}

// kind 0: x4, 1: x4 transposed, 2: x2, 3: x2 transposed
__global__ void load(const uint16_t* matrices, uint32_t* out, int kind) {
    LMM_SHARED(uint16_t, smem, 4 * 64);
    const int lane = threadIdx.x;
    for (int i = lane; i < 4 * 64; i += 32) smem[i] = matrices[i];
    __syncwarp();
    uint32_t four[4] = {}, two[2] = {};
    const uint16_t* row = smem + 8 * lane;
    const uint16_t* half_row = lane < 16 ? row : nullptr;
    if (kind == 0) lmm::ldmatrix_x4(four, row);
    if (kind == 1) lmm::ldmatrix_x4_trans(four, row);
    if (kind == 2) lmm::ldmatrix_x2(two, half_row);
    if (kind == 3) lmm::ldmatrix_x2_trans(two, half_row);
    for (int i = 0; i < 4; ++i) out[4 * lane + i] = kind < 2 ? four[i] : i < 2 ? two[i] : 0;
}

__global__ void exchange(const int* in, int* out) {
    const int lane = threadIdx.x, mine = in[lane];
    const unsigned all = 0xffffffffu;
    const int found[] = {
        __shfl_sync(all, mine, lane / 2),       __shfl_sync(all, mine, 3, 8),         __shfl_xor_sync(all, mine, 5),
        __shfl_down_sync(all, mine, 9u),        __shfl_down_sync(all, mine, 3u, 8),   __shfl_up_sync(all, mine, 9u),
        static_cast<int>(__ballot_sync(all, mine % 3 == 0)), __any_sync(all, mine == 7), __all_sync(all, mine >= 0), __all_sync(all, mine > 0),
    };
    for (int i = 0; i < 10; ++i) out[32 * i + lane] = found[i];
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;  // two collectives at once
    out[320 + lane] = __shfl_xor_sync(half, mine, 1);
}

__global__ void count(const int* in, int* out) {
    const int yes = in[threadIdx.x];
    const int found[] = {__syncthreads_count(yes), __syncthreads_or(yes), __syncthreads_and(yes)};
    for (int i = 0; i < 3; ++i) out[3 * threadIdx.x + i] = found[i];
}

// Two groups of copies; rows that are not valid must not be read. `wait` is false in the wrong kernel.
__global__ void copy(const uint4* in, uint4* out, int valid, bool wait) {
    LMM_DYNAMIC_SHARED(uint4, smem);
    const int t = threadIdx.x;
    lmm::cp_async_16(smem + t, in + t, t < valid);
    lmm::cp_async_commit();
    lmm::cp_async_16(smem + 64 + t, in + 64 + t, 64 + t < valid);
    lmm::cp_async_commit();
    lmm::cp_async_wait<1>();
    __syncthreads();
    out[t] = smem[63 - t];
    if (wait) lmm::cp_async_wait<0>();
    __syncthreads();
    out[64 + t] = smem[64 + (t ^ 1)];
}

// Reverses 128 values through shared memory, twice, so that both barriers are needed.
__global__ void reverse(const float* in, float* out, bool first, bool second) {
    LMM_SHARED(float, smem, 128);
    const int t = threadIdx.x;
    smem[t] = in[t];
    if (first) __syncthreads();
    const float once = smem[127 - t];
    if (second) __syncthreads();
    smem[t] = once + 1;
    __syncthreads();
    out[t] = smem[(t + 32) % 128];
}

// A row is written by one lane and read by ldmatrix for another.
__global__ void hand_over(uint32_t* out, bool sync) {
    LMM_SHARED(uint4, smem, 32);
    const int lane = threadIdx.x;
    smem[31 - lane] = make_uint4(lane, lane, lane, lane);
    if (sync) __syncwarp();
    uint32_t r[4];
    lmm::ldmatrix_x4(r, smem + lane);
    for (int i = 0; i < 4; ++i) out[4 * lane + i] = r[i];
}

__global__ void unwritten(float* out) {
    LMM_SHARED(float, fixed, 32);
    LMM_DYNAMIC_SHARED(unsigned char, smem);
    out[threadIdx.x] = fixed[threadIdx.x];
    out[32 + threadIdx.x] = reinterpret_cast<float*>(smem)[threadIdx.x];
    out[64 + threadIdx.x] = lmm::to_float<__half>(reinterpret_cast<__half*>(smem)[threadIdx.x]);
    out[96 + threadIdx.x] = lmm::to_float<__nv_bfloat16>(reinterpret_cast<__nv_bfloat16*>(smem)[threadIdx.x]);
    __syncthreads();
    fixed[threadIdx.x] = reinterpret_cast<float*>(smem)[threadIdx.x] = 1;  // must not reach the next CTA
}

// dynamic shared memory of 32 * 16 bytes
__global__ void refused(int what, float* out, int zero) {
    LMM_DYNAMIC_SHARED(unsigned char, smem);
    LMM_SHARED(float, fixed, 30);
    const int t = threadIdx.x;
    uint32_t r[4] = {}, b[2] = {};
    float d[4] = {};
    float* const words = reinterpret_cast<float*>(smem);
    switch (what) {
        case 0: words[t + 97] = 0; break;
        case 1: words[t - 1] = 0; break;
        case 2: fixed[t] = 0; break;
        case 3: lmm::ldmatrix_x4(r, smem + 16 * (t + 1)); break;
        case 4: lmm::ldmatrix_x4(r, smem + 2 * t); break;
        case 5: lmm::ldmatrix_x4(r, out); break;
        case 6: lmm::cp_async_16(smem + 16 * t + 16, out, false); break;
        case 7: lmm::cp_async_16(smem + 16 * t, reinterpret_cast<char*>(out) + 4, true); break;
        case 8: lmm::load_stream_16(reinterpret_cast<char*>(out) + 8); break;
        case 9:
            if (t % 2) lmm::mma_m16n8k16<__half>(d, r, b);
            else lmm::mma_m16n8k16<__half>(d, r, b);
            break;
        case 10:
            if (t < 16) __shfl_xor_sync(~0u, t, 1);
            else __syncwarp();
            break;
        case 11:
            if (t < 16) __syncwarp();
            break;
        case 12:
            if (t < 16) __syncwarp();
            __syncthreads();
            break;
        case 13: __syncwarp(~1u); break;
        case 14: __shfl_sync(t < 16 ? 0xffffu : 0xffff0000u, t, 31 - t); break;
        case 15:
            if (t < 16) __syncthreads();
            else __syncthreads();
            break;
        case 16: out[0] = 5 / zero; break;
        case 17: out[1 << 30] = 1; break;
        case 18: words[-t - 1] = 5; break;
    }
}

__global__ void dense_conflicts(uint32_t* out, bool swizzled) {
    LMM_DYNAMIC_SHARED(uint4, smem);
    const int lane = threadIdx.x;
    for (int i = lane; i < 32 * 8; i += 32) smem[i] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    uint32_t r[4];
    lmm::ldmatrix_x4(r, smem + 8 * lane + (swizzled ? lane % 8 : 0));
    out[lane] = r[0];
}

__global__ void where(int* out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}

#define RUN(grid, block, smem_bytes, kernel, ...)                              \
    cudaError_t error;                                                         \
    LMM_LAUNCH(error, (kernel), grid, block, smem_bytes, nullptr, __VA_ARGS__); \
    return error

extern "C" {
LMM_EXPORT const char* message(int code) { return lmm::error_message(code); }
LMM_EXPORT int conflicts() { return static_cast<int>(simt::counters.ldmatrix_conflicts); }
LMM_EXPORT int run_multiply(const uint32_t* a, const uint32_t* b, float* d, bool bf16) {
    if (bf16) { RUN(1, 32, 0, multiply<__nv_bfloat16>, a, b, d); }
    RUN(1, 32, 0, multiply<__half>, a, b, d);
}
LMM_EXPORT int run_load(const uint16_t* in, uint32_t* out, int kind) { RUN(1, 32, 0, load, in, out, kind); }
LMM_EXPORT int run_exchange(const int* in, int* out) { RUN(1, 32, 0, exchange, in, out); }
LMM_EXPORT int run_count(const int* in, int* out) { RUN(1, 96, 0, count, in, out); }
LMM_EXPORT int run_copy(const uint4* in, uint4* out, int valid, bool wait) { RUN(1, 64, 2048, copy, in, out, valid, wait); }
LMM_EXPORT int run_reverse(const float* in, float* out, bool first, bool second) { RUN(1, 128, 0, reverse, in, out, first, second); }
LMM_EXPORT int run_hand_over(uint32_t* out, bool sync) { RUN(1, 32, 0, hand_over, out, sync); }
LMM_EXPORT int run_unwritten(float* out) { RUN(2, 32, 512, unwritten, out); }
LMM_EXPORT int run_refused(int what, float* out) { RUN(1, 32, 512, refused, what, out, 0); }
LMM_EXPORT int run_dense_conflicts(uint32_t* out, bool swizzled) { RUN(1, 32, 4096, dense_conflicts, out, swizzled); }
LMM_EXPORT int run_where(int* out) { RUN(dim3(3, 2, 2), dim3(5, 4, 2), 0, where, out); }
LMM_EXPORT int run_with(int grid, int block, int smem_bytes, int* out) { RUN(grid, block, smem_bytes, where, out); }
LMM_EXPORT void halves(const float* in, uint16_t* half, uint16_t* bf16, int count) {
    for (int i = 0; i < count; ++i) half[i] = lmm::from_float<__half>(in[i]).bits, bf16[i] = lmm::from_float<__nv_bfloat16>(in[i]).bits;
}
LMM_EXPORT void floats(const uint16_t* in, float* half, float* bf16, int count) {
    for (int i = 0; i < count; ++i) half[i] = lmm::to_float<__half>({in[i]}), bf16[i] = lmm::to_float<__nv_bfloat16>({in[i]});
}
LMM_EXPORT uint32_t pack(float low, float high, bool bf16) {
    return bf16 ? lmm::pack2<__nv_bfloat16>(low, high) : lmm::pack2<__half>(low, high);
}
}
"""


@pytest.fixture(scope="module")
def emulator(host_library):
    library = host_library(SOURCE)
    library.message.restype = ctypes.c_char_p
    library.pack.argtypes, library.pack.restype = [ctypes.c_float, ctypes.c_float, ctypes.c_bool], ctypes.c_uint32

    class Emulator:
        """Calls a function with arrays as pointers; a code that is not 0 becomes a RuntimeError with the message."""

        def __getattr__(self, name):
            def call(*arguments):
                plain = [ctypes.c_void_p(x.ctypes.data) if isinstance(x, np.ndarray) else x for x in arguments]
                code = getattr(library, name)(*plain)
                if name.startswith("run_") and code:
                    raise RuntimeError(library.message(code).decode())
                return code

            return call

    return Emulator()


# ---- numbers -------------------------------------------------------------------------------------


def test_halves_are_rounded_as_numpy_and_torch_round(emulator):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) + np.array([[0x7FFF], [0x8000], [0x8001]], dtype=np.uint32)
    ties_half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32) + 0x1000
    near_smallest = (rng.uniform(-1, 1, 20_000) * 2.0**-14).astype(np.float32).view(np.uint32)
    values = np.concatenate([bits, ties.ravel(), ties_half, near_smallest]).view(np.float32)
    values = values[~np.isnan(values)].copy()
    half, bf16 = np.empty(len(values), np.uint16), np.empty(len(values), np.uint16)
    emulator.halves(values, half, bf16, len(values))
    with np.errstate(over="ignore"):
        assert np.array_equal(half, values.astype(np.float16).view(np.uint16))
    assert np.array_equal(bf16, torch.from_numpy(values).bfloat16().view(torch.uint16).numpy())


def test_every_half_becomes_the_float_it_stands_for(emulator):
    bits = np.arange(2**16, dtype=np.uint16)
    half, bf16 = np.empty(2**16, np.float32), np.empty(2**16, np.float32)
    emulator.floats(bits, half, bf16, len(bits))
    assert np.array_equal(half, bits.view(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(bf16, torch.from_numpy(bits).view(torch.bfloat16).float().numpy(), equal_nan=True)


def test_nan_stays_nan_and_pairs_have_the_first_value_low(emulator):
    assert emulator.pack(1.0, float("nan"), True) == 0x7FFF_3F80
    assert emulator.pack(float("inf"), -2.0, False) == 0xC000_7C00


# ---- matrices ------------------------------------------------------------------------------------


def in_register(values: np.ndarray) -> np.ndarray:
    """Pairs of 16-bit values, the first in the lower half: (..., 2n) -> uint32 (..., n)."""
    pairs = values.view(np.uint16).astype(np.uint32).reshape(*values.shape[:-1], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 16


def to_bits(values: np.ndarray, bf16: bool) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16 if bf16 else torch.float16).view(torch.uint16).numpy()


@pytest.mark.parametrize("bf16", [False, True], ids=["half", "bf16"])
def test_mma_multiplies_fragments_as_the_isa_lays_them_out(emulator, bf16, simt_seed):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(16, 16)), rng.normal(size=(16, 8))
    start = rng.normal(size=(16, 8)).astype(np.float32)
    a_bits, b_bits = to_bits(a, bf16), to_bits(b, bf16)
    a_lanes, b_lanes = np.empty((32, 8), np.uint16), np.empty((32, 4), np.uint16)
    d_lanes, place = np.empty((32, 4), np.float32), {}
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):
            row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
            column = thread * 2 + (i & 1) + (0 if i < 4 else 8)
            a_lanes[lane, i] = a_bits[row, column]
        for i in range(4):
            b_lanes[lane, i] = b_bits[thread * 2 + (i & 1) + (0 if i < 2 else 8), group]
            place[lane, i] = (group if i < 2 else group + 8, thread * 2 + (i & 1))
            d_lanes[lane, i] = start[place[lane, i]]
    emulator.run_multiply(in_register(a_lanes), in_register(b_lanes), d_lanes, bf16)
    exact = rounded(a_bits, bf16) @ rounded(b_bits, bf16) + start.astype(np.float64)
    found = np.array([[d_lanes[lane, i] - exact[place[lane, i]] for i in range(4)] for lane in range(32)])
    assert np.abs(found).max() < 16 * 2.0**-23 * np.abs(exact).max(), np.abs(found).max()


def rounded(bits: np.ndarray, bf16: bool) -> np.ndarray:
    return torch.from_numpy(bits).view(torch.bfloat16 if bf16 else torch.float16).double().numpy()


@pytest.mark.parametrize(("kind", "matrices", "transposed"), [(0, 4, False), (1, 4, True), (2, 2, False), (3, 2, True)])
def test_ldmatrix_gives_each_lane_two_neighbours_of_a_row(emulator, kind, matrices, transposed, simt_seed):
    smem = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    out = np.empty((32, 4), np.uint32)
    emulator.run_load(smem, out, kind)
    for lane in range(32):
        for matrix in range(matrices):
            held = smem[matrix].T if transposed else smem[matrix]
            low, high = held[lane // 4, 2 * (lane % 4)], held[lane // 4, 2 * (lane % 4) + 1]
            assert out[lane, matrix] == int(low) | int(high) << 16, (lane, matrix)


def test_bank_conflicts_of_ldmatrix_are_counted(emulator):
    out, before = np.empty(32, np.uint32), emulator.conflicts()
    emulator.run_dense_conflicts(out, False)  # eight rows, 128 bytes apart: all in the same banks, seven wait
    assert emulator.conflicts() - before == 4 * 7
    emulator.run_dense_conflicts(out, True)
    assert emulator.conflicts() - before == 4 * 7


# ---- lanes and threads ---------------------------------------------------------------------------


def test_shuffles_and_votes_move_what_cuda_says(emulator, simt_seed):
    mine = np.random.default_rng(2).permutation(32).astype(np.int32)
    out = np.empty((11, 32), np.int32)
    emulator.run_exchange(mine, out)
    lane = np.arange(32)

    def taken(source, width=32):
        stays = (source < lane // width * width) | (source >= lane // width * width + width)
        return mine[np.where(stays, lane, source)]

    ballot = sum(1 << int(i) for i in lane if mine[i] % 3 == 0)
    expected = [
        *(taken(lane // 2), taken(lane // 8 * 8 + 3), taken(lane ^ 5), taken(lane + 9), taken(lane + 3, 8), taken(lane - 9)),
        *(np.full(32, ballot, np.int64).astype(np.uint32).view(np.int32), np.ones(32), np.ones(32), np.zeros(32), taken(lane ^ 1)),
    ]
    for row, (found, wanted) in enumerate(zip(out, expected, strict=True)):
        assert np.array_equal(found, wanted), row


@pytest.mark.parametrize("yes", [0, 1, 95, 96])
def test_barriers_count_the_threads_that_say_yes(emulator, yes, simt_seed):
    out = np.empty((96, 3), np.int32)
    emulator.run_count((np.arange(96) < yes).astype(np.int32), out)
    assert (out == [yes, yes > 0, yes == 96]).all()


def test_every_thread_of_every_block_runs_once(emulator, simt_seed):
    out = np.zeros(12 * 40, np.int32)
    emulator.run_where(out)
    assert np.array_equal(out, (1000 * np.arange(12)[:, None] + np.arange(40)).ravel())


@pytest.mark.parametrize(("grid", "block", "smem_bytes"), [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 163 * 1024 + 1)])
def test_launches_beyond_an_a100_fail(emulator, grid, block, smem_bytes):
    with pytest.raises(RuntimeError, match="invalid"):
        emulator.run_with(grid, block, smem_bytes, np.zeros(40, np.int32))


# ---- cp.async ------------------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [0, 10, 70, 128])
def test_cp_async_copies_rows_and_zeros_the_invalid_unread(emulator, fenced, valid, simt_seed):
    rows = torch.arange(1, 1 + 4 * valid, dtype=torch.int32).view(valid, 4)
    out = np.full((128, 4), -1, np.int32)
    emulator.run_copy(fenced(rows).numpy(), out, valid, True)
    whole = np.zeros((128, 4), np.int32)
    whole[:valid] = rows.numpy()
    assert np.array_equal(out, np.concatenate([whole[63::-1], whole[64 + (np.arange(64) ^ 1)]]))


def test_reading_a_fenced_tensor_past_its_end_is_refused(emulator, fenced):
    rows = fenced(torch.ones(10, 4, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="not mapped"):
        emulator.run_copy(rows.numpy(), np.empty((128, 4), np.int32), 11, True)


def test_a_missing_wait_is_seen(emulator, monkeypatch):
    rows = np.arange(512, dtype=np.int32).reshape(128, 4)
    results = []
    for moment in ("late", "early"):
        monkeypatch.setenv("LMM_SIMT_COPIES", moment)
        out = np.empty((128, 4), np.int32)
        emulator.run_copy(rows, out, 128, False)
        results.append(out)
    assert np.array_equal(results[0][:64], results[1][:64])
    assert (results[0][64:].view(np.uint32) == 0x7FFF7FFF).all() and np.array_equal(results[1][64:], rows[64 + (np.arange(64) ^ 1)])


# ---- wrong kernels -------------------------------------------------------------------------------


def reversals(emulator, monkeypatch, first, second):
    """What the kernel gives under ten seeds: one array when nothing in it is left to luck."""
    values, found = np.arange(128, dtype=np.float32), set()
    for seed in range(10):
        monkeypatch.setenv("LMM_SIMT_SEED", str(seed))
        out = np.empty(128, np.float32)
        emulator.run_reverse(values, out, first, second)
        found.add(out.tobytes())
    return found


def test_a_kernel_with_its_barriers_is_the_same_for_every_seed(emulator, monkeypatch):
    expected = np.roll(np.arange(127, -1, -1), -32).astype(np.float32) + 1
    assert reversals(emulator, monkeypatch, True, True) == {expected.tobytes()}


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_a_missing_barrier_is_seen(emulator, monkeypatch, first, second):
    assert len(reversals(emulator, monkeypatch, first, second)) > 1


def test_a_missing_syncwarp_before_ldmatrix_is_seen(emulator, monkeypatch):
    results = {True: set(), False: set()}
    for seed in range(4):
        monkeypatch.setenv("LMM_SIMT_SEED", str(seed))
        for sync, found in results.items():
            out = np.empty((32, 4), np.uint32)
            emulator.run_hand_over(out, sync)
            found.add(out.tobytes())
    assert len(results[True]) == 1 and len(results[False]) > 1


def test_unwritten_shared_memory_is_nan_in_every_dtype_and_every_block(emulator):
    out = np.zeros(128, np.float32)
    emulator.run_unwritten(out)
    assert np.isnan(out).all()


REFUSED = {
    0: r"byte 512 of shared array 'dynamic', which has 512 bytes",
    1: r"wrote byte -4 of shared array 'dynamic'",
    2: r"wrote byte 1\d\d of shared array 'fixed', which has 120 bytes",
    3: r"ldmatrix_x4: byte 512 of shared array 'dynamic'",
    4: r"ldmatrix_x4: address .* is no multiple of 16 bytes",
    5: r"ldmatrix_x4: address .* is not in shared memory",
    6: r"cp_async_16: byte 512 of shared array 'dynamic'",
    7: r"cp_async_16: address .* is no multiple of 16 bytes",
    8: r"load_stream_16: address .* is no multiple of 16 bytes",
    9: r"mma_m16n8k16 .* while lanes .* wait for this one in mma_m16n8k16",
    10: r"while lanes .* wait for this one in",
    11: r"returned while its warp waits for it in __syncwarp|names lanes that don't exist or have returned: \d",
    12: r"deadlock: warp 0 lanes 0-15 in __syncwarp .*; warp 0 lanes 16-31 at __syncthreads",
    13: r"the mask leaves out lane 0",
    14: r"takes from lane \d+, which the mask leaves out",
    15: r"__syncthreads .* while other threads wait at __syncthreads",
    16: r"integer division by zero",
    17: r"not mapped: outside global memory",
    18: r"wrote byte -\d+ of shared array 'dynamic'",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_leaves_undefined_is_refused_with_the_place(emulator, what, simt_seed):
    out = torch.empty(64)
    with pytest.raises(RuntimeError, match=REFUSED[what]) as refusal:
        emulator.run_refused(what, out.numpy())
    assert str(refusal.value).startswith("block (0, 0, 0): ")
    emulator.run_where(np.zeros(480, np.int32))  # the next launch is none the worse for it
