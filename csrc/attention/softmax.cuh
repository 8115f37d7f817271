// Online softmax over blocks of keys, in units of log2: p = 2^(score * factor - top), factor = scale * log2(e), one FFMA and one ex2 an element.
//
// `top` is a running reference of each row, not always its maximum: it follows the maximum only once that is kSlack above it. Weights then stay below
// 2^kSlack, which costs no precision (they are floats of any exponent), and most blocks leave the sums as they are (FlashAttention-4 does so too). Each
// row decides for itself, so that its result doesn't depend on the rows beside it; a warp skips the multiplication only if it would be by 1 everywhere.
#pragma once

#include "common/ptx.cuh"
#include "attention/tile.cuh"

namespace lmm {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest = -1.0e30f;  // `top` before any key: finite, so that rows without a key need no care; far below any score
constexpr float kSlack = 8.0f;

// The rows of a warp's atoms: of each atom a lane has rows lane / 4 and lane / 4 + 8, shared with the three other lanes of its quad.
template <int ATOMS>
struct OnlineSoftmax {
    float top[ATOMS][2];
    float weight[ATOMS][2];  // sum of this lane's own weights; the quad's are added at the end

    __device__ OnlineSoftmax() {
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
            top[atom][0] = top[atom][1] = kLowest;
            weight[atom][0] = weight[atom][1] = 0.0f;
        }
    }

    // Turn scores of a block into weights, and scale `sums` to the new `top`.
    template <int TILES, int COLUMNS>
    __device__ void update(float (&scores)[ATOMS][TILES][4], float (&sums)[ATOMS][COLUMNS][4], float factor) {
        float kept[ATOMS][2];
        bool moved = false;
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float highest = -INFINITY;
#pragma unroll
                for (int i = 0; i < TILES; ++i) highest = fmaxf(highest, fmaxf(scores[atom][i][half * 2], scores[atom][i][half * 2 + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 2)) * factor;
                bool moves = highest > top[atom][half] + kSlack;
                kept[atom][half] = moves ? exp2_fast(top[atom][half] - highest) : 1.0f;
                top[atom][half] = moves ? highest : top[atom][half];
                moved |= moves;
            }
        }
        if (__any_sync(0xffffffff, moved)) scale_by(kept, sums);
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[atom][i][j] = exp2_fast(fmaf(scores[atom][i][j], factor, -top[atom][j / 2]));
                    weight[atom][j / 2] += scores[atom][i][j];
                }
            }
        }
    }

    template <int COLUMNS>
    __device__ void scale_by(const float (&kept)[ATOMS][2], float (&sums)[ATOMS][COLUMNS][4]) {
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
            weight[atom][0] *= kept[atom][0];
            weight[atom][1] *= kept[atom][1];
#pragma unroll
            for (int i = 0; i < COLUMNS; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[atom][i][j] *= kept[atom][j / 2];
            }
        }
    }

    // Whole sums of weights, the same for a quad's lanes.
    __device__ float whole_weight(int atom, int half) const {
        float whole = weight[atom][half];
        whole += __shfl_xor_sync(0xffffffff, whole, 1);
        return whole + __shfl_xor_sync(0xffffffff, whole, 2);
    }

    // Natural logarithm of the sum of exp(score): -inf for a row that saw no key.
    __device__ float log_sum(int atom, int half, float whole) const {
        return whole > 0.0f ? (top[atom][half] + log2_fast(whole)) * kLn2 : -INFINITY;
    }
};

}  // namespace lmm
