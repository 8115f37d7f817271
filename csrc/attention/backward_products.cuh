// The products of the backward on mma.sync.m16n8k16. Scores and dp are computed transposed, keys down and rows across: their accumulators, rounded, are then
// the A operands of dv += p^T dO and dk += ds^T q, and only dq needs ds from other warps.
//
// At the edge of a mask, products leave out what nobody sees, by 16 keys x 16 rows; elsewhere they are straight code.
#pragma once

#include "attention/backward_tile.cuh"
#include "attention/mma.cuh"

namespace lmm {

// Which groups of 16 rows see any key of each of a warp's atoms.
template <class Tile>
struct AllSeen {
    static constexpr bool kAll = true;
    __device__ bool any(int) const { return true; }
    __device__ bool has(int, int) const { return true; }
    __device__ bool none() const { return false; }
};

template <class Tile>
struct SomeSeen {
    static constexpr bool kAll = false;
    uint32_t groups[Tile::kAtoms];

    // Of the groups' greatest ends.
    __device__ SomeSeen(const int32_t* group_ends, int first_key, int warp) {
#pragma unroll
        for (int atom = 0; atom < Tile::kAtoms; ++atom) groups[atom] = 0;
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            int end = group_ends[group];
#pragma unroll
            for (int atom = 0; atom < Tile::kAtoms; ++atom) groups[atom] |= (end > first_key + Tile::atom_row(warp, atom) ? 1u : 0u) << group;
        }
    }
    __device__ bool any(int group) const { return ((groups[0] | groups[1]) >> group & 1) != 0; }
    __device__ bool has(int atom, int group) const { return (groups[atom] >> group & 1) != 0; }
    __device__ bool none() const { return (groups[0] | groups[1]) == 0; }
};

// sums[key][row] += A B^T: A are the warp's keys, B a block of rows, `lane` its lane_across.
template <class T, class Tile, class Seen>
__device__ void multiply_keys_rows(
    float (&sums)[Tile::kAtoms][Tile::kRows / 8][4], const SharedRows<Tile, typename Tile::Keys>& keys, const unsigned char* rows, int lane, const Seen& seen) {
#pragma unroll
    for (int step = 0; step < Tile::kWidth / kAtom; ++step) {
        uint32_t a[Tile::kAtoms][4];
#pragma unroll
        for (int atom = 0; atom < Tile::kAtoms; ++atom) keys.load(a[atom], atom, step);
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            if (!seen.any(group)) continue;
            uint32_t b[4];
            ldmatrix_x4(b, rows + Tile::Rows::from_lane(lane, group * kAtom, step * 2));
#pragma unroll
            for (int atom = 0; atom < Tile::kAtoms; ++atom) {
                if (!seen.has(atom, group)) continue;
                mma_m16n8k16<T>(sums[atom][group * 2], a[atom], {b[0], b[1]});
                mma_m16n8k16<T>(sums[atom][group * 2 + 1], a[atom], {b[2], b[3]});
            }
        }
    }
}

// sums[key][column] += A B for one group of 16 rows: A are weights of the warp's keys in registers, B a block of rows, `lane` its lane_down.
template <class T, class Tile, class Seen>
__device__ void multiply_weights(
    float (&sums)[Tile::kAtoms][Tile::kWidth / 8][4], const uint32_t (&weights)[Tile::kAtoms][4], const unsigned char* rows, int lane, int group,
    const Seen& seen) {
#pragma unroll
    for (int column = 0; column < Tile::kWidth / kAtom; ++column) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, rows + Tile::Rows::from_lane(lane, group * kAtom, column * 2));
#pragma unroll
        for (int atom = 0; atom < Tile::kAtoms; ++atom) {
            if (!seen.has(atom, group)) continue;
            mma_m16n8k16<T>(sums[atom][column * 2], weights[atom], {b[0], b[1]});
            mma_m16n8k16<T>(sums[atom][column * 2 + 1], weights[atom], {b[2], b[3]});
        }
    }
}

// A warp's part of dq: 32 rows x 64 columns.
template <class Tile>
using QueryPart = float[Tile::kPartRows / kAtom][Tile::kPartColumns / 8][4];

// part += ds k over the first `steps` groups of 16 keys, of each of the part's atoms of rows. ds lies transposed.
template <class T, class Tile, class Steps>
__device__ void multiply_slopes(QueryPart<Tile>& part, const unsigned char* slopes, const unsigned char* keys, int warp, const Steps& steps) {
    constexpr int kRowAtoms = Tile::kPartRows / kAtom;
    int lane = threadIdx.x % 32;
    int lane_slopes = Tile::Weights::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2 + Tile::part_row(warp) / kChunkElements);
    int lane_keys = Tile::Keys::offset(lane % 16, lane / 16 + Tile::part_column(warp) / kChunkElements);
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
        if (!steps.any(step)) continue;
        uint32_t a[kRowAtoms][4];
#pragma unroll
        for (int atom = 0; atom < kRowAtoms; ++atom) ldmatrix_x4_trans(a[atom], slopes + Tile::Weights::from_lane(lane_slopes, step * kAtom, atom * 2));
#pragma unroll
        for (int column = 0; column < Tile::kPartColumns / kAtom; ++column) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, keys + Tile::Keys::from_lane(lane_keys, step * kAtom, column * 2));
#pragma unroll
            for (int atom = 0; atom < kRowAtoms; ++atom) {
                if (!steps.has(atom, step)) continue;
                mma_m16n8k16<T>(part[atom][column * 2], a[atom], {b[0], b[1]});
                mma_m16n8k16<T>(part[atom][column * 2 + 1], a[atom], {b[2], b[3]});
            }
        }
    }
}

}  // namespace lmm
