// The two products of attention on mma.sync.m16n8k16: S = A B^T and O += P V, with fragments loaded by ldmatrix from swizzled tiles.
//
// Fragments, for lane l (PTX ISA, "Matrix Fragments for mma.m16n8k16"): of an accumulator 16 x 8 the lane holds row l / 4, columns 2 (l % 4) and + 1, then
// the same of row l / 4 + 8. An accumulator pair 16 x 16 rounded to 16 bits is an A operand without moving a value between lanes: P never touches memory.
//
// A warp's A operand has ATOMS atoms of 16 rows; each fragment of B is loaded once and used for all of them (32 rows a warp halve the traffic of 16).
#pragma once

#include "common/ptx.cuh"
#include "attention/tile.cuh"

namespace lmm {

// A lane's own offset when it loads 16 rows x 16 columns by one ldmatrix.x4: matrices below each other first. What an A operand wants, and a transposed B.
template <class Tile>
constexpr __host__ __device__ int lane_down(int lane) {
    return Tile::offset(lane % 16, lane / 16);
}

// The same with matrices beside each other first: what two n8 fragments of a B operand want that is stored with its rows as columns of the product.
template <class Tile>
constexpr __host__ __device__ int lane_across(int lane) {
    return Tile::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// A operand in shared memory: the atoms of a warp of a tile, loaded when they are needed.
template <class Layout, class Tile>
struct SharedRows {
    const unsigned char* tile;
    int lane;  // lane_down, moved to the warp's first atom

    __device__ SharedRows(const unsigned char* tile, int warp) : tile(tile), lane(lane_down<Tile>(threadIdx.x % 32) + Layout::atom_row(warp, 0) * kPageRowBytes) {}

    __device__ void load(uint32_t (&a)[4], int atom, int step) const {
        ldmatrix_x4(a, tile + Tile::from_lane(lane, Layout::atom_row(0, atom), step * 2));
    }
};

// A operand in registers: loaded once, where there is room.
template <class Layout, int ATOMS>
struct HeldRows {
    uint32_t held[ATOMS][Layout::kSteps][4];

    template <class Source>
    __device__ void hold(const Source& source) {
#pragma unroll
        for (int step = 0; step < Layout::kSteps; ++step) {
#pragma unroll
            for (int atom = 0; atom < ATOMS; ++atom) source.load(held[atom][step], atom, step);
        }
    }

    __device__ void load(uint32_t (&a)[4], int atom, int step) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = held[atom][step][i];
    }
};

// How many groups of 16 keys each atom of a warp looks at; `all` says so to the compiler, which then makes straight code.
template <int ATOMS>
struct AllGroups {
    static constexpr bool kAll = true;
    __device__ bool has(int, int) const { return true; }
    __device__ bool any(int) const { return true; }
};

template <int ATOMS>
struct SomeGroups {
    static constexpr bool kAll = false;
    int count[ATOMS];
    int most;
    __device__ bool has(int atom, int group) const { return group < count[atom]; }
    __device__ bool any(int group) const { return group < most; }
};

template <int ATOMS, int COLUMNS>
__device__ void clear(float (&sums)[ATOMS][COLUMNS / 8][4], float value = 0.0f) {
#pragma unroll
    for (int atom = 0; atom < ATOMS; ++atom) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[atom][i][j] = value;
        }
    }
}

// sums += A B^T: B is a tile of KEYS rows in shared memory, `lane` its lane_across.
template <class T, class Tile, int ATOMS, class Rows, class Groups>
__device__ void multiply_transposed(float (&sums)[ATOMS][Tile::kRows / 8][4], const Rows& rows, const unsigned char* keys, int lane, const Groups& groups) {
#pragma unroll
    for (int step = 0; step < Tile::kWidth / kAtom; ++step) {
        uint32_t a[ATOMS][4];
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) rows.load(a[atom], atom, step);
#pragma unroll
        for (int group = 0; group < Tile::kRows / kAtom; ++group) {
            if (!groups.any(group)) break;
            uint32_t b[4];
            ldmatrix_x4(b, keys + Tile::from_lane(lane, group * kAtom, step * 2));
#pragma unroll
            for (int atom = 0; atom < ATOMS; ++atom) {
                if (!groups.has(atom, group)) continue;
                mma_m16n8k16<T>(sums[atom][group * 2], a[atom], {b[0], b[1]});
                mma_m16n8k16<T>(sums[atom][group * 2 + 1], a[atom], {b[2], b[3]});
            }
        }
    }
}

// Two accumulators beside each other as an A operand, rounded to T.
template <class T>
__device__ void as_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack2<T>(left[0], left[1]);
    a[1] = pack2<T>(left[2], left[3]);
    a[2] = pack2<T>(right[0], right[1]);
    a[3] = pack2<T>(right[2], right[3]);
}

// sums += P B: P are accumulators, rounded to T here; B is a tile in shared memory with as many rows as P has columns, `lane` its lane_down.
template <class T, class Tile, int ATOMS, class Groups>
__device__ void multiply(
    float (&sums)[ATOMS][Tile::kWidth / 8][4], const float (&weights)[ATOMS][Tile::kRows / 8][4], const unsigned char* values, int lane, const Groups& groups) {
#pragma unroll
    for (int group = 0; group < Tile::kRows / kAtom; ++group) {
        if (!groups.any(group)) break;
        uint32_t a[ATOMS][4];
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) as_operand<T>(a[atom], weights[atom][group * 2], weights[atom][group * 2 + 1]);
#pragma unroll
        for (int column = 0; column < Tile::kWidth / kAtom; ++column) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + Tile::from_lane(lane, group * kAtom, column * 2));
#pragma unroll
            for (int atom = 0; atom < ATOMS; ++atom) {
                if (!groups.has(atom, group)) continue;
                mma_m16n8k16<T>(sums[atom][column * 2], a[atom], {b[0], b[1]});
                mma_m16n8k16<T>(sums[atom][column * 2 + 1], a[atom], {b[2], b[3]});
            }
        }
    }
}

}  // namespace lmm
