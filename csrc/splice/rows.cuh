// How a warp moves rows: 16 bytes a lane and access, eight accesses under way before the first is used.
//
// An A100 must keep about 9 KiB under way in each multiprocessor to cover 500 ns at 1.8 TB/s, an H100 14 KiB. A warp with eight loads has 4 KiB; the
// CTAs that fit have several times what is needed, so nothing is staged in shared memory and nothing is prefetched. A span is what one warp holds:
// 4 KiB of a row. A row of 8 KiB goes to two warps, so that no warp loops and the last ones to finish finish together.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/ptx.cuh"

namespace lmm::splice {

constexpr int kLanes = 32;
constexpr int kWarps = 4;  // of a CTA
constexpr int kThreads = kWarps * kLanes;
constexpr int kLoads = 8;

constexpr __host__ __device__ int ceil_div(int a, int b) { return a / b + (a % b != 0); }

// Elements of one access where rows of both types allow 16 bytes to the wider of the two.
template <class A, class B>
constexpr int kWide = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));

template <int BYTES>
struct BitsOf;
template <>
struct BitsOf<16> {
    using Type = uint4;
};
template <>
struct BitsOf<8> {
    using Type = uint2;
};
template <>
struct BitsOf<4> {
    using Type = uint32_t;
};
template <>
struct BitsOf<2> {
    using Type = uint16_t;
};

// N elements as they lie in memory.
template <class T, int N>
using Bits = typename BitsOf<N * static_cast<int>(sizeof(T))>::Type;

// Of memory that this kernel doesn't write; zeros where there is none.
template <class T, int N>
__device__ __forceinline__ Bits<T, N> load_bits(const T* from, bool there) {
    if constexpr (N * sizeof(T) == 16) {
        return load_stream_16(from, there);
    } else {
        return there ? *reinterpret_cast<const Bits<T, N>*>(from) : Bits<T, N>{};
    }
}

template <class T, int N>
__device__ __forceinline__ void store_bits(T* to, Bits<T, N> bits) {
    if constexpr (N * sizeof(T) == 16) {
        store_stream_16(to, bits);
    } else {
        *reinterpret_cast<Bits<T, N>*>(to) = bits;
    }
}

template <class T, int N>
__device__ __forceinline__ void widen(Bits<T, N> bits, float (&values)[N]) {
    T elements[N];
    memcpy(elements, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(elements[i]);
}

template <class T, int N>
__device__ __forceinline__ Bits<T, N> narrow(const float (&values)[N]) {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; ++i) elements[i] = from_float<T>(values[i]);
    Bits<T, N> bits;
    memcpy(&bits, elements, sizeof(bits));
    return bits;
}

template <class To, class From, int N>
__device__ __forceinline__ Bits<To, N> converted(Bits<From, N> bits) {
    if constexpr (std::is_same_v<To, From>) {
        return bits;
    } else {
        float values[N];
        widen<From, N>(bits, values);
        return narrow<To, N>(values);
    }
}

// One warp's span of a row: in each of its kLoads parts, neighbouring lanes have neighbouring columns. A lane says where its first column lies and how
// many columns the row has from there on; 0 or less: it has none.
template <class T, int N>
struct Span {
    static constexpr int kPart = kLanes * N;  // columns
    static constexpr int kColumns = kLoads * kPart;
    Bits<T, N> part[kLoads];

    // The calling lane's first column of the span that begins at column `first`.
    static __device__ __forceinline__ int lane_column(int first) { return first + static_cast<int>(threadIdx.x % kLanes) * N; }

    __device__ __forceinline__ void load(const T* from, int columns_left) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) part[i] = load_bits<T, N>(from + i * kPart, i * kPart < columns_left);
    }

    template <class To>
    __device__ __forceinline__ void store(To* to, int columns_left) const {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            if (i * kPart < columns_left) store_bits<To, N>(to + i * kPart, converted<To, T, N>(part[i]));
        }
    }

    // The factor is rounded to T already; products are rounded again.
    __device__ __forceinline__ void multiply(float factor) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            float values[N];
            widen<T, N>(part[i], values);
#pragma unroll
            for (float& value : values) value *= factor;
            part[i] = narrow<T, N>(values);
        }
    }
};

// Which warp of the grid this is. Uniform over the warp, and below 2^31: launchers refuse more.
__device__ __forceinline__ uint32_t warp_of(uint32_t cta) {
    return cta * kWarps + threadIdx.x / kLanes;
}

}  // namespace lmm::splice
