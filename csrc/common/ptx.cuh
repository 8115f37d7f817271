// Every PTX instruction this library writes by hand, one wrapper each. The names in brackets are sections of the PTX ISA manual (8.x).
// T is __nv_bfloat16 or __half. Everything here is for whole warps: mma and ldmatrix need all 32 lanes at the same call.
//
// Fragments of mma m16n8k16 [Matrix fragments for mma.m16n8k16 with floating point type]; group = lane / 4, in_group = lane % 4:
//   a[0] row group,     columns 2 in_group, +1        a[2] row group,     columns 2 in_group + 8, +9
//   a[1] row group + 8, columns 2 in_group, +1        a[3] row group + 8, columns 2 in_group + 8, +9
//   b[0] column group, rows 2 in_group, +1            b[1] column group, rows 2 in_group + 8, +9
//   d[0], d[1] row group, columns 2 in_group, +1      d[2], d[3] row group + 8, the same columns
// The lower 16 bits of a register hold the lower index.
#pragma once

#include "common/cuda.cuh"

#ifdef LMM_SIMT
#include "simt/ptx.h"
#else

namespace lmm {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- matrix ------------------------------------------------------------------------------------------------------------------------

// [mma] d += a b with fp32 accumulation; a is 16 x 16 (row), b is 16 x 8 (column).
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// [ldmatrix] 8 x 8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned); r[i] of
// lane l then holds row l / 4, columns 2 (l % 4) and + 1 of matrix i. With trans, columns and rows change places.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

// Lanes 0..15 give the addresses; those of the others are not looked at.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

// ---- copies into shared memory -----------------------------------------------------------------------------------------------------

// [cp.async] 16 bytes past the L1 cache; zeros, and no read, when not valid. Done for the thread that issued it after its cp_async_wait,
// for the others after a barrier after that.
__device__ __forceinline__ void cp_async_16(void* smem, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// [cp.async.commit_group] closes the group of the copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// [cp.async.wait_group] waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- rows that are touched once ----------------------------------------------------------------------------------------------------

// [ld.global.nc, cache eviction priority] through the read-only path and not kept in L1: never for what this kernel itself writes.
__device__ __forceinline__ uint4 load_stream_16(const void* global) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(__cvta_generic_to_global(global)));
    return value;
}

// The same where valid, zeros and no read where not: a predicate of the instruction, not a branch, so that several loads get under way together.
__device__ __forceinline__ uint4 load_stream_16(const void* global, bool valid) {
    uint4 value;
    asm volatile(
        "{\n"
        "  .reg .pred valid;\n"
        "  setp.ne.u32 valid, %5, 0;\n"
        "  mov.u32 %0, 0;\n"
        "  mov.u32 %1, 0;\n"
        "  mov.u32 %2, 0;\n"
        "  mov.u32 %3, 0;\n"
        "  @valid ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(__cvta_generic_to_global(global)), "r"(static_cast<uint32_t>(valid)));
    return value;
}

// [st, cache operators] .cs: likely to be read by nobody soon.
__device__ __forceinline__ void store_stream_16(void* global, uint4 value) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(global)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// ---- order between CTAs --------------------------------------------------------------------------------------------------------------

// [ld.acquire, memory consistency model] waits until *place is value; what was written before the release that wrote it is then seen. Whoever waits
// must know that the CTA that will write it has begun: CTAs that haven't may never get a place to run. One lane waits for its warp, and __syncwarp() hands on
// what it has seen.
__device__ __forceinline__ void wait_until(const int32_t* place, int32_t value) {
    int32_t found;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(found) : "l"(__cvta_generic_to_global(place)) : "memory");
    } while (found != value);
}

// [st.release] everything that this thread wrote before, and that it knows of by a barrier, is seen by who waits for the value.
__device__ __forceinline__ void release(int32_t* place, int32_t value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "r"(value) : "memory");
}

// [red] *place += value, rounded once, in memory; nothing comes back.
__device__ __forceinline__ void add_in_memory(float* place, float value) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "f"(value) : "memory");
}

// [red.vec_32_bit] four values on 16 bytes: one instruction from sm_90 on.
__device__ __forceinline__ void add_in_memory(float* place, float4 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.v4.f32.add [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(place)), "f"(value.x), "f"(value.y),
                 "f"(value.z), "f"(value.w)
                 : "memory");
#else
    add_in_memory(place, value.x), add_in_memory(place + 1, value.y), add_in_memory(place + 2, value.z), add_in_memory(place + 3, value.w);
#endif
}

// ---- arithmetic --------------------------------------------------------------------------------------------------------------------

// [ex2, lg2] to about 2^-22; -inf gives 0, and 0 gives -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two values in one register, `low` in the lower 16 bits, each rounded to the nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t pair);
template <class T>
__device__ __forceinline__ T from_float(float value);
template <class T>
__device__ __forceinline__ float to_float(T value);

template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}

template <>
__device__ __forceinline__ uint32_t pack2<__half>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}

template <>
__device__ __forceinline__ float2 unpack2<__nv_bfloat16>(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <>
__device__ __forceinline__ float2 unpack2<__half>(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
}

template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
    return __float2half_rn(value);
}

template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}

template <>
__device__ __forceinline__ float to_float<__nv_bfloat16>(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

template <>
__device__ __forceinline__ float to_float<__half>(__half value) {
    return __half2float(value);
}

template <>
__device__ __forceinline__ float to_float<float>(float value) {
    return value;
}

}  // namespace lmm
#endif
