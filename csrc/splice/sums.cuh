// Sums of gradient rows in a fixed order, in fp32: the order of kernels/splice_bwd.py, so that both give the same bits.
//
// Row i of a run is added to sum i % 8, and the eight sums are added in turn. The eight sums of a lane's columns are eight chains of additions, and eight
// rows are under way at a time.
#pragma once

#include "rows.cuh"

namespace lmm::splice {

constexpr int kSums = kLoads;
constexpr int kPartialSums = 4;  // pieces of an id are added likewise, to four: a row of fp32 is two loads

// N consecutive fp32, through the caches: both halves of 32 bytes share a sector.
template <int N>
__device__ __forceinline__ void load_floats(const float* from, float (&values)[N]) {
    constexpr int kAtOnce = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < N; i += kAtOnce) {
        const auto bits = *reinterpret_cast<const Bits<float, kAtOnce>*>(from + i);
        memcpy(values + i, &bits, sizeof(bits));
    }
}

// N consecutive elements; cached ones are read again soon.
template <class T, int N, bool CACHED>
__device__ __forceinline__ void store_floats(T* to, const float (&values)[N]) {
    constexpr int kAtOnce = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
    for (int i = 0; i < N; i += kAtOnce) {
        float some[kAtOnce];
        memcpy(some, values + i, sizeof(some));
        const Bits<T, kAtOnce> bits = narrow<T, kAtOnce>(some);
        if constexpr (CACHED) {
            *reinterpret_cast<Bits<T, kAtOnce>*>(to + i) = bits;
        } else {
            store_bits<T, kAtOnce>(to + i, bits);
        }
    }
}

// total[c] = sum over j of sums[j][c], in turn.
template <int SUMS, int N>
__device__ __forceinline__ void add_up(const float (&sums)[SUMS][N], float (&total)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
        total[c] = sums[0][c];
#pragma unroll
        for (int j = 1; j < SUMS; ++j) total[c] += sums[j][c];
    }
}

// Sum of the gradient rows at places [begin, end) of the order, of this lane's columns.
template <class T, int N>
__device__ __forceinline__ void sum_of_rows(const T* columns, int64_t row_stride, bool exist, const int32_t* order, int begin, int end,
                                            float (&total)[N]) {
    float sums[kSums][N] = {};
#pragma unroll 1
    for (int place = begin; place < end; place += kSums) {
        int32_t rows[kSums];  // the same for all lanes, and 32 of them in a line of the L1
#pragma unroll
        for (int j = 0; j < kSums; ++j) rows[j] = place + j < end ? __ldg(order + place + j) : -1;
        Bits<T, N> found[kSums];
#pragma unroll
        for (int j = 0; j < kSums; ++j) found[j] = load_bits<T, N>(columns + rows[j] * row_stride, exist && rows[j] >= 0);
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
            float values[N];
            widen<T, N>(found[j], values);
#pragma unroll
            for (int c = 0; c < N; ++c) sums[j][c] += values[c];
        }
    }
    add_up(sums, total);
}

// Sum of an id's pieces, whose partial sums lie in consecutive slots.
template <int N>
__device__ __forceinline__ void sum_of_pieces(const float* columns, int64_t slot_stride, bool exist, int pieces, float (&total)[N]) {
    float sums[kPartialSums][N] = {};
#pragma unroll 1
    for (int piece = 0; piece < pieces; piece += kPartialSums) {
        float found[kPartialSums][N] = {};
#pragma unroll
        for (int j = 0; j < kPartialSums; ++j) {
            if (exist && piece + j < pieces) load_floats(columns + (piece + j) * slot_stride, found[j]);
        }
#pragma unroll
        for (int j = 0; j < kPartialSums; ++j) {
#pragma unroll
            for (int c = 0; c < N; ++c) sums[j][c] += found[j][c];
        }
    }
    add_up(sums, total);
}

}  // namespace lmm::splice
