// Which keys a row sees: the one place that knows.
//
// Every mask is a bound: a row sees the keys `key < end` of its segment. With place = row + keys - rows (the last row meets the last key),
//
//     end = keys (full) | place + 1 (causal) | kv_end[row] - first key of the segment (kv_end), within 0..keys
//
// Past this file nobody asks which mask it is. kv_end may be anything: extremes are taken over the rows, monotone or not.
#pragma once

#include "attention/attention.h"
#include "attention/tile.cuh"

namespace lmm {

// One segment: its rows are packed rows first_row .. first_row + rows, its keys likewise.
struct Segment {
    int first_row, rows;
    int first_key, keys;
};

constexpr __host__ __device__ int within(int low, int value, int high) { return value < low ? low : value < high ? value : high; }

// `end` of a row of a segment. `packed_end` is kv_end of the row, ignored by other masks.
constexpr __host__ __device__ int row_end(int mask, int row, const Segment& segment, int packed_end) {
    int end = mask == kFull ? segment.keys : mask == kCausal ? row + segment.keys - segment.rows + 1 : packed_end - segment.first_key;
    return within(0, end, segment.keys);
}

// The least and greatest `end` of some rows.
struct Ends {
    int least, greatest;
};

// Blocks of `block` keys that a tile visits: 0 .. stop. Every row sees those before `masked` whole.
struct KeyBlocks {
    int masked, stop;
};

constexpr __host__ __device__ KeyBlocks key_blocks(Ends ends, int block) { return {ends.least / block, ceil_div(ends.greatest, block)}; }

// Groups of 16 keys, of a block that starts at first_key, that any of the rows sees whose greatest `end` is given.
constexpr __host__ __device__ int visible_groups(int greatest, int first_key, int groups) {
    return within(0, ceil_div(greatest - first_key, kAtom), groups);
}

// Device part: `end` of a row that may lie after the segment's last, which sees nothing.
struct RowEnds {
    int mask;
    Segment segment;
    const int32_t* packed_ends;  // of the segment's first row; null unless the mask is kKvEnd

    __device__ int at(int row) const {
        if (row >= segment.rows) return 0;
        return row_end(mask, row, segment, mask == kKvEnd ? packed_ends[row] : 0);
    }

    // Extremes over the rows first .. first + COUNT that exist, the same for all lanes. Only kv_end has to look at every row.
    template <int COUNT>
    __device__ Ends over(int first) const {
        int last = min(first + COUNT, segment.rows) - 1;
        if (mask != kKvEnd) return {at(first), at(last)};
        Ends ends{segment.keys, 0};
        for (int row = first + threadIdx.x % 32; row <= last; row += 32) {
            int end = at(row);
            ends = {min(ends.least, end), max(ends.greatest, end)};
        }
        for (int mate = 16; mate > 0; mate /= 2) {
            ends.least = min(ends.least, __shfl_xor_sync(0xffffffff, ends.least, mate));
            ends.greatest = max(ends.greatest, __shfl_xor_sync(0xffffffff, ends.greatest, mate));
        }
        return ends;
    }
};

}  // namespace lmm
