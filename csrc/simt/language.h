// CUDA C++'s words in g++: qualifiers, vector types, and the device functions kernels may use.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
// A function of x86-64 says its bounds by as many instructions of one byte before it (runtime.h reads them): a specifier has nowhere else to leave them.
#ifdef __x86_64__
#define LMM_SIMT_THREADS(threads, ...) (threads) + 0  // a sum, which g++ 12 evaluates in a template where it fails on a name
#define __launch_bounds__(...) __attribute__((patchable_function_entry(LMM_SIMT_THREADS(__VA_ARGS__, 0), LMM_SIMT_THREADS(__VA_ARGS__, 0))))
#else
#define __launch_bounds__(...)
#endif
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 from) : x(from.x), y(from.y), z(from.z) {}
};
struct __align__(8) int2 { int x, y; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(16) float4 { float x, y, z, w; };

constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Where the running fiber stands; the scheduler writes them at every switch.
inline uint3 threadIdx{0, 0, 0};
inline uint3 blockIdx{0, 0, 0};
inline dim3 blockDim{1, 1, 1};
inline dim3 gridDim{1, 1, 1};
inline constexpr int warpSize = 32;

namespace simt {

template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bytes");
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}

inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }

// What .ftz does: a subnormal becomes a zero of its sign.
inline float without_subnormal(float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

}  // namespace simt

#define LMM_MIN_MAX(type)                                        \
    constexpr type min(type a, type b) { return b < a ? b : a; } \
    constexpr type max(type a, type b) { return a < b ? b : a; }
LMM_MIN_MAX(int)
LMM_MIN_MAX(unsigned)
LMM_MIN_MAX(long)
LMM_MIN_MAX(unsigned long)
LMM_MIN_MAX(long long)
LMM_MIN_MAX(unsigned long long)
#undef LMM_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

inline unsigned __float_as_uint(float x) { return simt::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return simt::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits_as<float>(x); }
inline float __int_as_float(int x) { return simt::bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
#define rsqrtf ::simt::reciprocal_root  // a name that newer C libraries have as well
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __expf(float x) { return simt::without_subnormal(std::exp(x)); }
inline float __logf(float x) { return std::log(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
template <class T>
inline T __ldg(const T* pointer) { return *pointer; }
template <class T>
inline T __ldcs(const T* pointer) { return *pointer; }
template <class T>
inline T __ldcg(const T* pointer) { return *pointer; }
template <class T>
inline void __stcs(T* pointer, T value) { *pointer = value; }
template <class T>
inline void __stcg(T* pointer, T value) { *pointer = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Fibers change at collectives only, so a plain read-modify-write is atomic.
template <class T>
inline T atomicAdd(T* place, T value) {
    const T before = *place;
    *place = before + value;
    return before;
}
template <class T>
inline T atomicMax(T* place, T value) {
    const T before = *place;
    if (before < value) *place = value;
    return before;
}
