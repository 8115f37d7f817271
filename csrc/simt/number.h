// __half and __nv_bfloat16 as bits, converted by rounding to the nearest even as the hardware's cvt.rn does. No arithmetic: kernels compute in fp32.
#pragma once

#include "simt/language.h"

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __align__(4) __half2 {
    __half x, y;
};
struct __align__(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // the one NaN that cvt makes
    const uint32_t half_less = 0x7fffu + ((bits >> 16) & 1u);  // carries into the kept bits above the half, and at the half when they are odd
    return {static_cast<uint16_t>((bits + half_less) >> 16)};
}

inline float __half2float(__half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = (value.bits >> 10) & 0x1fu, fraction = value.bits & 0x3ffu;
    if (exponent == 0) {  // zero and subnormals: fraction 2^-24, exact in fp32
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return __uint_as_float(__float_as_uint(magnitude) | sign);
    }
    if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000u | (fraction << 13));
    return __uint_as_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline __half __float2half_rn(float value) {
    const uint32_t bits = __float_as_uint(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {0x7fff};
    if (magnitude < 0x38800000u) {  // below 2^-14: a count of 2^-24, which the sum with 0.5 leaves rounded in the lowest bits
        const uint32_t sum = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
        return {static_cast<uint16_t>(sign | (sum - 0x3f000000u))};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    if (rounded >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more
    return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }
