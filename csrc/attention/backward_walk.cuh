// Which tile of keys a CTA holds, and which blocks of rows it visits: for each query head of the group, from the segment's last block to its first, those
// in which some row sees one of its keys. Where to look is data of the first kernel, for every mask alike.
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

// The order of visits, the same for all warps of a CTA and for all CTAs of a head.
struct Walk {
    const int2* extremes;  // of the segment's first block
    int first_key, members;
    int low, high;         // first and last block that is visited; high < low: none

    // For a whole warp.
    __device__ Walk(const int2* extremes, const KeyTile& tile, int members)
        : extremes(extremes + tile.first_slot), first_key(tile.first_key), members(members), low(tile.blocks), high(-1) {
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

    __device__ bool sees(int block) const { return extremes[block].y > first_key; }
    __device__ bool none() const { return high < low; }
    __device__ Visit at(int member, int block) const { return {member, block, {extremes[block].x, extremes[block].y}}; }
    __device__ Visit first() const { return at(0, high); }
    __device__ bool over(const Visit& visit) const { return visit.member == members; }

    // With kv_end, blocks between two that see the tile may see nothing of it.
    __device__ Visit after(const Visit& visit) const {
        int member = visit.member, block = visit.block;
        do {
            block = block > low ? block - 1 : high;
            member += block == high ? 1 : 0;
        } while (!sees(block));
        return at(member, block);
    }
};

}  // namespace lmm
