// Tiles of rows between global and shared memory, 16 bytes a lane: cp.async in, one warp's 16-byte stores out.
//
// In: the CTA's threads take the chunks of a row next to each other, and the next rows with the next threads. A pass is a multiple of 8 rows, so that a
// thread's place in the swizzle never changes: it computes two addresses once, and each pass adds a constant to one and a stride to the other.
#pragma once

#include "common/ptx.cuh"
#include "attention/tile.cuh"

namespace lmm {

// Loads tiles of type Tile (SharedTile) with THREADS threads from rows `stride` elements apart.
template <class T, class Tile, int THREADS>
struct TileLoader {
    static constexpr int kPassRows = THREADS / Tile::kChunks;
    static constexpr int kPasses = Tile::kRows / kPassRows;
    static_assert(kPassRows % 8 == 0 && Tile::kRows % kPassRows == 0, "whole passes of whole swizzles");

    const T* from;   // this thread's chunk of the tile's first pass, in the tile at which the loader stands
    int64_t pass;    // elements from one pass to the next
    int row, to;     // this thread's row of the first pass, and its byte offset in shared memory

    // What a thread copies in a pass, and the byte offset it copies it to.
    static constexpr __host__ __device__ int row_of(int thread, int pass) { return thread / Tile::kChunks + pass * kPassRows; }
    static constexpr __host__ __device__ int chunk_of(int thread) { return thread % Tile::kChunks; }
    static constexpr __host__ __device__ int place_of(int thread, int pass) {
        return Tile::offset(row_of(thread, 0), chunk_of(thread)) + pass * kPassRows * kPageRowBytes;
    }

    // Stand at the tile whose first row starts at `first_row`.
    __device__ TileLoader(const T* first_row, int64_t stride)
        : from(first_row + row_of(threadIdx.x, 0) * stride + chunk_of(threadIdx.x) * kChunkElements),
          pass(kPassRows * stride),
          row(row_of(threadIdx.x, 0)),
          to(place_of(threadIdx.x, 0)) {}

    // Issue the copies of the tile, and commit them as a group. With CHECK rows from `live` on become zeros and are not read.
    template <bool CHECK>
    __device__ void load(unsigned char* shared, int live) const {
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            bool valid = !CHECK || row + i * kPassRows < live;
            cp_async_16(shared + to + i * kPassRows * kPageRowBytes, from + i * pass, valid);
        }
        cp_async_commit();
    }

    // Stand at the tile before this one, which holds Tile::kRows rows.
    __device__ void step_back() { from -= kPasses * pass; }
};

// One warp writes 16 rows (an atom) of a tile in shared memory to rows `stride` elements apart, as far as they are live.
template <class T, class Tile>
__device__ void store_atom(T* first_row, int64_t stride, const unsigned char* shared, int atom_row, int live) {
    constexpr int kRowsAtOnce = 32 / Tile::kChunks;
    int lane = threadIdx.x % 32, chunk = lane % Tile::kChunks;
#pragma unroll
    for (int i = 0; i < kAtom / kRowsAtOnce; ++i) {
        int row = i * kRowsAtOnce + lane / Tile::kChunks;
        if (row >= live) break;
        uint4 value = *reinterpret_cast<const uint4*>(shared + Tile::offset(atom_row + row, chunk));
        store_stream_16(first_row + row * stride + chunk * kChunkElements, value);
    }
}

}  // namespace lmm
