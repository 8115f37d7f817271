// Sizes of a tile of attention and where its bytes lie in shared memory: all of it is arithmetic of constants, tested on the host.
//
// A tile of rows lies in pages 64 elements wide, so that a row of a page is 128 bytes: all 32 banks once, 8 chunks of 16 bytes. Chunk c of row r lies
// where chunk c ^ (r % 8) would without a swizzle. Eight lanes of a transaction then never meet in a bank: not when they read one chunk of eight rows
// (ldmatrix), not when they write eight chunks of one row (cp.async).
#pragma once

#include "common/cuda.cuh"

namespace lmm {

constexpr int kChunkBytes = 16;
constexpr int kChunkElements = 8;  // of 16 bits
constexpr int kPageChunks = 8;
constexpr int kPageRowBytes = kPageChunks * kChunkBytes;
constexpr int kAtom = 16;  // rows, keys or columns of one mma operand
constexpr int kSharedBytesAnywhere = 99 * 1024;  // of a CTA, on every GPU from compute capability 8.0 on: 8.6, 8.9 and 12.0 have no more

constexpr __host__ __device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A tile of ROWS rows of WIDTH 16-bit elements in shared memory.
template <int ROWS, int WIDTH>
struct SharedTile {
    static_assert(ROWS % kAtom == 0 && WIDTH % (kPageChunks * kChunkElements) == 0, "whole atoms of rows, whole pages");
    static constexpr int kRows = ROWS;
    static constexpr int kWidth = WIDTH;
    static constexpr int kChunks = WIDTH / kChunkElements;  // of a row
    static constexpr int kBytes = ROWS * WIDTH * 2;

    // Byte offset of a chunk.
    static constexpr __host__ __device__ int offset(int row, int chunk) {
        return (chunk / kPageChunks) * ROWS * kPageRowBytes + row * kPageRowBytes + ((chunk % kPageChunks) ^ (row % 8)) * kChunkBytes;
    }

    // Byte offset of (row + lane's row, chunk + lane's chunk) for a lane whose own offset(lane_row, lane_chunk) is `lane`, lane_chunk 0 or 1, with row a
    // multiple of 8 and chunk of 2: the swizzle only flips bits, so what is constant can be flipped afterwards. One LOP a chunk, no more.
    static constexpr __host__ __device__ int from_lane(int lane, int row, int chunk) {
        return (lane ^ (chunk % kPageChunks * kChunkBytes)) + row * kPageRowBytes + (chunk / kPageChunks) * ROWS * kPageRowBytes;
    }
};

// What one CTA of the forward holds (a tile of rows of one head) and walks over (blocks of keys).
//
// Atoms of 16 rows are dealt to warps in turn: warp w has atoms w, w + WARPS, ... A tile with few rows then keeps all warps busy, each with few atoms, and
// below a diagonal the warps' shares are more alike than in one slab a warp.
template <int ROWS, int KEYS, int WARPS, int WIDTH>
struct AttentionTile {
    static constexpr int kRows = ROWS;
    static constexpr int kKeys = KEYS;
    static constexpr int kWarps = WARPS;
    static constexpr int kWidth = WIDTH;
    static constexpr int kThreads = WARPS * 32;
    static constexpr int kAtoms = ROWS / kAtom / WARPS;  // of a warp
    static constexpr int kGroups = KEYS / kAtom;         // groups of 16 keys in a block
    static constexpr int kSteps = WIDTH / kAtom;         // products of 16 over the head dim
    static_assert(ROWS % (kAtom * WARPS) == 0 && KEYS % kAtom == 0, "whole atoms for every warp");

    using Rows = SharedTile<ROWS, WIDTH>;
    using Keys = SharedTile<KEYS, WIDTH>;

    // Shared memory: rows, one block of keys, one block of values. The output leaves through the rows' place.
    static constexpr int kRowsAt = 0;
    static constexpr int kKeysAt = kRowsAt + Rows::kBytes;
    static constexpr int kValuesAt = kKeysAt + Keys::kBytes;
    static constexpr int kSharedBytes = kValuesAt + Keys::kBytes;
    static_assert(kSharedBytes <= kSharedBytesAnywhere, "a CTA of any GPU: nobody asks whether the forward fits");

    // First row of a warp's atom within the tile.
    static constexpr __host__ __device__ int atom_row(int warp, int atom) { return (atom * WARPS + warp) * kAtom; }

    // How many of a warp's atoms hold at least one of the tile's `live` rows: the first so many.
    static constexpr __host__ __device__ int live_atoms(int warp, int live) {
        int atoms = ceil_div(ceil_div(live, kAtom) - warp, WARPS);
        return atoms < 0 ? 0 : atoms < kAtoms ? atoms : kAtoms;
    }
};

}  // namespace lmm
