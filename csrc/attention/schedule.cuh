// Which tile of rows a CTA works on, and in which order CTAs start.
//
// The number of CTAs depends on host numbers only. Three ways to the same tiles, by what the caller has:
//   - a list made on the host from the segments' lengths, longest first (by blocks of keys, then by live atoms), so that what starts last is short;
//   - segments all of one length: a division;
//   - neither: each warp searches cu_q, 32 segments at a time. A graph captured so stays right when boundaries change in place.
// Without a list a segment's last tile comes first where a mask lets it see most.
//
// Rows after the last segment (slack) are one more segment, which sees nothing.
#pragma once

#include <algorithm>
#include <vector>

#include "attention/mask.cuh"

namespace lmm {

// A tile: rows block * ROWS .. of a segment. Segment `segments` is the slack; beyond it there is nothing to do.
struct TilePlace {
    int segment, block;
};

// CTAs along the rows of a launch without a list: as many as there can be tiles.
constexpr int most_tiles(int64_t rows, int segments, int longest, bool even, int tile_rows) {
    return even ? segments * ceil_div(longest, tile_rows) : static_cast<int>((rows + tile_rows - 1) / tile_rows) + segments;
}

// The list: every tile of every segment and of the slack once, longest first, equals in order of their rows.
inline std::vector<TilePlace> longest_first(
    const int32_t* lengths_q, const int32_t* lengths_k, int segments, int64_t rows_q, int mask, int tile_rows, int tile_keys) {
    struct Timed {
        TilePlace place;
        int64_t cost;
    };
    std::vector<Timed> tiles;
    int64_t rest = rows_q;
    for (int segment = 0; segment <= segments; ++segment) {
        bool slack = segment == segments;
        int rows = slack ? static_cast<int>(rest) : lengths_q[segment];
        Segment own{0, rows, 0, slack ? 0 : lengths_k[segment]};
        for (int block = 0; block < ceil_div(rows, tile_rows); ++block) {
            int live = std::min(tile_rows, rows - block * tile_rows);
            // kv_end is on the device; of rows in a text it says what a causal mask says.
            int end = row_end(mask == kFull ? kFull : kCausal, block * tile_rows + live - 1, own, 0);
            tiles.push_back({{segment, block}, int64_t{ceil_div(end, tile_keys)} * tile_rows + live});
        }
        rest -= rows;
    }
    std::stable_sort(tiles.begin(), tiles.end(), [](const Timed& a, const Timed& b) { return a.cost > b.cost; });
    std::vector<TilePlace> places;
    for (const Timed& tile : tiles) places.push_back(tile.place);
    return places;
}

// First row after `segment`: of the slack, the last of all rows.
__device__ inline int segment_end(const int32_t* cu_q, int segment, int segments, int64_t rows_q) {
    return segment < segments ? cu_q[segment + 1] : static_cast<int>(rows_q);
}

// Tile `index` in the order of segments, for a whole warp.
template <int ROWS>
__device__ TilePlace search_tile(int index, const int32_t* cu_q, int segments, int64_t rows_q) {
    int lane = threadIdx.x % 32, before = 0;
    for (int first = 0; first <= segments; first += 32) {
        int segment = first + lane;
        int tiles = segment <= segments ? ceil_div(segment_end(cu_q, segment, segments, rows_q) - cu_q[segment], ROWS) : 0;
        int upto = tiles;
        for (int mate = 1; mate < 32; mate *= 2) {
            int other = __shfl_up_sync(0xffffffff, upto, mate);
            upto += lane >= mate ? other : 0;
        }
        upto += before;
        unsigned behind = __ballot_sync(0xffffffff, index < upto);
        if (behind != 0) {
            int found = __ffs(behind) - 1;
            return {first + found, index - __shfl_sync(0xffffffff, upto - tiles, found)};
        }
        before = __shfl_sync(0xffffffff, upto, 31);
    }
    return {segments + 1, 0};
}

template <int ROWS>
__device__ TilePlace tile_of(const LmmAttentionForwardArgs& args, int index) {
    if (args.tiles != nullptr) return {args.tiles[2 * index], args.tiles[2 * index + 1]};
    int blocks = ceil_div(args.longest_q, ROWS);
    TilePlace place = args.even != 0 ? TilePlace{index / blocks, index % blocks} : search_tile<ROWS>(index, args.cu_q, args.segments, args.rows_q);
    return place;
}

}  // namespace lmm
