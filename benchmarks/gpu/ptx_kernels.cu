// One kernel for each kind of instruction in csrc/common/ptx.cuh, as small as can be: what benchmarks/gpu/ptx.py runs first on a GPU. Operands come and
// go by vectors of the registers that the instruction takes, so that its machine code shows the order of operands (tests/static/test_ptx_code.py).
#include "common/launch.cuh"
#include "common/ptx.cuh"

#if defined(LMM_SIMT) || !defined(__CUDACC__)
#define PTX_EXPORT extern "C" LMM_EXPORT
#else
#define PTX_EXPORT extern "C"
#endif

namespace {

template <class Vector, int COUNT, class Value>
__device__ void unpack(Value (&values)[COUNT], const void* from, int lane) {
    static_assert(sizeof(Vector) == sizeof values, "one vector");
    *reinterpret_cast<Vector*>(values) = static_cast<const Vector*>(from)[lane];
}

template <class T>
__global__ void ptx_mma(const void* a, const void* b, void* d) {
    alignas(16) uint32_t a_lane[4], b_lane[2];
    alignas(16) float d_lane[4];
    const int lane = threadIdx.x;
    unpack<uint4>(a_lane, a, lane);
    unpack<uint2>(b_lane, b, lane);
    unpack<float4>(d_lane, d, lane);
    lmm::mma_m16n8k16<T>(d_lane, a_lane, b_lane);
    static_cast<float4*>(d)[lane] = make_float4(d_lane[0], d_lane[1], d_lane[2], d_lane[3]);
}

template <int MATRICES, bool TRANSPOSED>
__global__ void ptx_ldmatrix(const uint16_t* matrices, uint32_t* out) {
    LMM_SHARED(uint16_t, smem, 4 * 64);
    const int lane = threadIdx.x;
    for (int i = lane; i < 4 * 64; i += 32) smem[i] = matrices[i];
    __syncwarp();
    const uint16_t* row = smem + 8 * (lane % (8 * MATRICES));
    uint32_t found[MATRICES];
    if constexpr (MATRICES == 4) {
        TRANSPOSED ? lmm::ldmatrix_x4_trans(found, row) : lmm::ldmatrix_x4(found, row);
    } else {
        TRANSPOSED ? lmm::ldmatrix_x2_trans(found, row) : lmm::ldmatrix_x2(found, row);
    }
    for (int i = 0; i < MATRICES; ++i) out[MATRICES * lane + i] = found[i];
}

// Two groups of 64 copies into memory that held something else: where not valid, zeros, and `in` is not read.
__global__ void ptx_cp_async(const uint4* in, uint4* out, int valid) {
    LMM_SHARED(uint4, smem, 128);
    const int t = threadIdx.x;
    smem[t] = smem[64 + t] = make_uint4(~0u, ~0u, ~0u, ~0u);
    __syncthreads();
    lmm::cp_async_16(smem + t, in + t, t < valid);
    lmm::cp_async_commit();
    lmm::cp_async_16(smem + 64 + t, in + 64 + t, 64 + t < valid);
    lmm::cp_async_commit();
    lmm::cp_async_wait<1>();
    __syncthreads();
    out[t] = smem[63 - t];
    lmm::cp_async_wait<0>();
    __syncthreads();
    out[64 + t] = smem[64 + (t ^ 1)];
}

__global__ void ptx_red(float* sums) {
    lmm::add_in_memory(sums + threadIdx.x, static_cast<float>(blockIdx.x));
}

__global__ void ptx_red_vector(float4* sums) {
    const float value = static_cast<float>(blockIdx.x);
    lmm::add_in_memory(reinterpret_cast<float*>(sums + threadIdx.x), make_float4(value, value + 1, value + 2, value + 3));
}

// CTA after CTA, in the order of tickets, replaces what all threads find: a value that is seen late, or handed on early, stays wrong to the end.
__global__ void ptx_turns(int32_t* ticket, int32_t* turn, uint32_t* values, int count) {
    LMM_SHARED(int, mine, 1);
    if (threadIdx.x == 0) *mine = atomicAdd(ticket, 1);
    __syncthreads();
    const int number = *mine;
    if (threadIdx.x == 0) lmm::wait_until(turn, number);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) __stcg(values + i, 3 * __ldcg(values + i) + static_cast<uint32_t>(number));
    __syncthreads();
    if (threadIdx.x == 0) lmm::release(turn, number + 1);
}

__global__ void ptx_stream(const uint4* in, uint4* out, int valid) {
    const int t = threadIdx.x;
    lmm::store_stream_16(out + t, lmm::load_stream_16(in + t, t < valid));
    lmm::store_stream_16(out + 64 + t, lmm::load_stream_16(in));
}

template <class T>
__global__ void ptx_numbers(const float* in, float* powers, float* logs, uint32_t* pairs, float2* back) {
    const int t = threadIdx.x;
    powers[t] = lmm::exp2_fast(in[t]);
    logs[t] = lmm::log2_fast(in[t]);
    pairs[t] = lmm::pack2<T>(in[t], in[t ^ 1]);
    back[t] = lmm::unpack2<T>(pairs[t]);
}

cudaStream_t as_stream(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

#define PTX_RUN(grid, block, kernel, ...)                                               \
    cudaError_t error;                                                                  \
    LMM_LAUNCH(error, kernel, grid, block, 0, as_stream(stream), __VA_ARGS__); \
    return error

PTX_EXPORT const char* ptx_message(int code) { return lmm::error_message(code); }
PTX_EXPORT int ptx_run_mma(const void* a, const void* b, void* d, int bf16, uintptr_t stream) {
    if (bf16) { PTX_RUN(1, 32, (ptx_mma<__nv_bfloat16>), a, b, d); }
    PTX_RUN(1, 32, (ptx_mma<__half>), a, b, d);
}
PTX_EXPORT int ptx_run_ldmatrix(const uint16_t* in, uint32_t* out, int matrices, int transposed, uintptr_t stream) {
    if (matrices == 4 && transposed) { PTX_RUN(1, 32, (ptx_ldmatrix<4, true>), in, out); }
    if (matrices == 4) { PTX_RUN(1, 32, (ptx_ldmatrix<4, false>), in, out); }
    if (transposed) { PTX_RUN(1, 32, (ptx_ldmatrix<2, true>), in, out); }
    PTX_RUN(1, 32, (ptx_ldmatrix<2, false>), in, out);
}
PTX_EXPORT int ptx_run_cp_async(const uint4* in, uint4* out, int valid, uintptr_t stream) { PTX_RUN(1, 64, (ptx_cp_async), in, out, valid); }
PTX_EXPORT int ptx_run_red(float* sums, int ctas, uintptr_t stream) { PTX_RUN(ctas, 64, (ptx_red), sums); }
PTX_EXPORT int ptx_run_red_vector(float4* sums, int ctas, uintptr_t stream) { PTX_RUN(ctas, 64, (ptx_red_vector), sums); }
PTX_EXPORT int ptx_run_turns(int32_t* ticket, int32_t* turn, uint32_t* values, int count, int ctas, uintptr_t stream) {
    PTX_RUN(ctas, 128, (ptx_turns), ticket, turn, values, count);
}
PTX_EXPORT int ptx_run_stream(const uint4* in, uint4* out, int valid, uintptr_t stream) { PTX_RUN(1, 64, (ptx_stream), in, out, valid); }
PTX_EXPORT int ptx_run_numbers(const float* in, float* powers, float* logs, uint32_t* pairs, float2* back, int bf16, uintptr_t stream) {
    if (bf16) { PTX_RUN(1, 64, (ptx_numbers<__nv_bfloat16>), in, powers, logs, pairs, back); }
    PTX_RUN(1, 64, (ptx_numbers<__half>), in, powers, logs, pairs, back);
}
