// Which tile of keys a CTA holds, and which blocks of rows it visits: from the segment's last block to its first, those in which some row sees one of its
// keys, each for all query heads of the group. Where to look is data of the first kernel, for every mask alike.
#pragma once

#include "attention/backward_tile.cuh"

namespace lmm {

// A tile of keys of one kv head.
struct KeyTile {
    Segment own;
    int segment, kv_head;
    int first_key;   // of the segment
    int live;        // keys of the tile that exist; at most 0: nothing to do
    int blocks;      // of rows
    int first_slot;  // of these

    template <class Tile>
    static __device__ KeyTile of(const BackwardCall& call, int ticket) {
        const LmmAttentionBackwardArgs& args = call.args;
        TicketOrder order{call.key_slots, args.kv_heads};
        KeyTile tile;
        int slot = order.slot(ticket);
        tile.kv_head = order.head(ticket);
        tile.segment = segment_of<Tile::kKeys>(slot, args.cu_k, args.segments);
        bool slack = tile.segment == args.segments;
        Segment& own = tile.own;
        own.first_key = args.cu_k[tile.segment];
        own.keys = (slack ? static_cast<int>(args.rows_k) : args.cu_k[tile.segment + 1]) - own.first_key;
        own.first_row = args.cu_q[tile.segment];
        own.rows = slack ? 0 : args.cu_q[tile.segment + 1] - own.first_row;
        tile.first_key = (slot - lmm::first_slot(own.first_key, tile.segment, Tile::kKeys)) * Tile::kKeys;
        tile.live = min(own.keys - tile.first_key, Tile::kKeys);
        tile.blocks = ceil_div(own.rows, Tile::kRows);
        tile.first_slot = lmm::first_slot(own.first_row, tile.segment, Tile::kRows);
        return tile;
    }
};

// A block of rows of one head.
struct Visit {
    int member;  // query head within the group
    int block;
    Ends ends;   // of the block's rows

    // A row sees some of the tile's keys, but not all: the block needs a mask.
    __device__ bool edge(int behind_last_key) const { return ends.least < behind_last_key; }
};

// The order of visits, the same for all warps of a CTA and for all CTAs of a head: from the last block that sees the tile to the first, all query heads of the
// group at a block before the next block.
//
// dq is added in the order of tiles, so a tile waits at a block until the tile before it has added there. Tiles begin at the same block, and each meets it a
// visit after the one before: nobody waits long. Head by head instead, a tile with few blocks would come to the next head's first block early, and wait there
// for the tile with the most, once a head: by 17 to 48% of the time with four or seven heads to a group (tests/csrc/test_attention_turns.py).
struct VisitOrder {
    const int2* extremes;  // of the segment's first block
    int first_key, members;
    int low, high;         // first and last block that is visited; high < low: none

    __device__ bool sees(int block) const { return extremes[block].y > first_key; }
    __device__ bool none() const { return high < low; }
    __device__ Visit at(int member, int block) const { return {member, block, {extremes[block].x, extremes[block].y}}; }
    __device__ Visit first() const { return at(0, high); }
    __device__ bool over(const Visit& visit) const { return visit.block < low; }

    // With kv_end, blocks between two that see the tile may see nothing of it.
    __device__ Visit after(const Visit& visit) const {
        if (visit.member + 1 < members) return {visit.member + 1, visit.block, visit.ends};
        int block = visit.block - 1;
        while (block > low && !sees(block)) --block;
        return block < low ? Visit{0, block, {0, 0}} : at(0, block);
    }
};

struct Walk : VisitOrder {
    // For a whole warp.
    __device__ Walk(const int2* extremes, const KeyTile& tile, int members)
        : VisitOrder{extremes + tile.first_slot, tile.first_key, members, tile.blocks, -1} {
        for (int block = threadIdx.x % 32; block < tile.blocks; block += 32) {
            if (!sees(block)) continue;
            low = min(low, block);
            high = max(high, block);
        }
        for (int mate = 16; mate > 0; mate /= 2) {
            low = min(low, __shfl_xor_sync(0xffffffff, low, mate));
            high = max(high, __shfl_xor_sync(0xffffffff, high, mate));
        }
    }
};

}  // namespace lmm
