// What the launchers decide on the host: element types, how wide an access rows allow, and the size of the grid.
#pragma once

#include "common/launch.cuh"
#include "rows.cuh"

namespace lmm::splice {

// Calls `then` with a value of the element type; its code is returned.
template <class Then>
int with_type(int32_t type, Then&& then) {
    switch (type) {
        case LMM_FLOAT32: return then(float{});
        case LMM_FLOAT16: return then(__half{});
        case LMM_BFLOAT16: return then(__nv_bfloat16{});
        default: return LMM_BAD_DTYPE;
    }
}

// Whether every access to N elements of such rows is aligned; strides count elements.
template <class T>
bool rows_align(int n, const void* pointer, std::initializer_list<int64_t> strides) {
    if (reinterpret_cast<uintptr_t>(pointer) % (n * sizeof(T))) return false;
    for (const int64_t stride : strides) {
        if (stride % n) return false;
    }
    return true;
}

// Calls `then` with the elements of an access as a constant: `WIDE` of them, or one.
template <int WIDE, class Then>
int with_access(bool wide, Then&& then) {
    return wide ? then(std::integral_constant<int, WIDE>{}) : then(std::integral_constant<int, 1>{});
}

// A grid of so many CTAs; the warps in it can be counted in 32 bits.
inline bool fits(int64_t ctas) {
    return ctas <= INT32_MAX / kWarps;
}

inline int64_t ctas_of(int64_t warps) {
    return (warps + kWarps - 1) / kWarps;
}

}  // namespace lmm::splice
