// The index arithmetic of csrc/attention as C functions, for test_attention_host.py and test_attention_turns.py (LMM_EXPORT is its fixture's). The headers are the kernels' own; nothing is computed here.
#include "attention/backward_walk.cuh"
#include "attention/copy.cuh"
#include "attention/mma.cuh"
#include "attention/schedule.cuh"

namespace {

using namespace lmm;

// The tile of a forward, by head dim; forward.cu asserts nothing else than these.
template <class Call>
int with_tile(int width, Call call) {
    return width == 64 ? call(AttentionTile<128, 64, 4, 64>{}) : call(AttentionTile<128, 64, 4, 128>{});
}

template <class Call>
int with_shared(int width, int rows, Call call) {
    if (rows == 64) return width == 64 ? call(SharedTile<64, 64>{}) : call(SharedTile<64, 128>{});
    return width == 64 ? call(SharedTile<128, 64>{}) : call(SharedTile<128, 128>{});
}

}  // namespace

extern "C" {

LMM_EXPORT int chunk_place(int width, int rows, int row, int chunk) {
    return with_shared(width, rows, [&](auto tile) { return tile.offset(row, chunk); });
}

LMM_EXPORT int tile_bytes(int width, int rows) {
    return with_shared(width, rows, [&](auto tile) { return tile.kBytes; });
}

// Where a lane reads when a warp loads the 16 x 16 elements at (row, chunk): `across` or down.
LMM_EXPORT int fragment_place(int width, int rows, int across, int lane, int row, int chunk) {
    return with_shared(width, rows, [&](auto tile) {
        using Tile = decltype(tile);
        return Tile::from_lane(across ? lane_across<Tile>(lane) : lane_down<Tile>(lane), row, chunk);
    });
}

// What a thread copies in a pass of a load by 128 threads: row, chunk, place. Returns the number of passes.
LMM_EXPORT int copied(int width, int rows, int thread, int pass, int* found) {
    return with_shared(width, rows, [&](auto tile) {
        using Loader = TileLoader<uint16_t, decltype(tile), 128>;
        found[0] = Loader::row_of(thread, pass);
        found[1] = Loader::chunk_of(thread);
        found[2] = Loader::place_of(thread, pass);
        return Loader::kPasses;
    });
}

LMM_EXPORT int shared_bytes(int width) {
    return with_tile(width, [](auto tile) { return tile.kSharedBytes; });
}

LMM_EXPORT int live_atoms(int warp, int live) {
    return with_tile(64, [&](auto tile) { return tile.live_atoms(warp, live); });
}

LMM_EXPORT int atom_row(int warp, int atom) {
    return with_tile(64, [&](auto tile) { return tile.atom_row(warp, atom); });
}

LMM_EXPORT int end_of_row(int mask, int row, int rows, int first_key, int keys, int packed_end) {
    return row_end(mask, row, Segment{0, rows, first_key, keys}, packed_end);
}

LMM_EXPORT void blocks_of(int least, int greatest, int* found) {
    KeyBlocks blocks = key_blocks({least, greatest}, 64);
    found[0] = blocks.masked;
    found[1] = blocks.stop;
}

LMM_EXPORT int groups_of(int greatest, int first_key) { return visible_groups(greatest, first_key, 4); }

LMM_EXPORT int schedule(const int32_t* lengths_q, const int32_t* lengths_k, int segments, int64_t rows, int mask, int32_t* tiles) {
    std::vector<TilePlace> places = longest_first(lengths_q, lengths_k, segments, rows, mask, 128, 64);
    for (size_t i = 0; i < places.size(); ++i) {
        tiles[2 * i] = places[i].segment;
        tiles[2 * i + 1] = places[i].block;
    }
    return static_cast<int>(places.size());
}

LMM_EXPORT int grid(int64_t rows, int segments, int longest, int even) { return most_tiles(rows, segments, longest, even != 0, 128); }

// Which slot of keys and which kv head a CTA of the backward works on.
LMM_EXPORT void ticket_place(int slots, int kv_heads, int ticket, int* found) {
    TicketOrder order{slots, kv_heads};
    found[0] = order.slot(ticket);
    found[1] = order.head(ticket);
}

LMM_EXPORT int slots_of(int64_t rows, int segments, int block) { return slot_count(rows, segments, block); }
LMM_EXPORT int slot_of(int begin, int segment, int block) { return first_slot(begin, segment, block); }

// The visits of a tile of keys in order, as (member, block); `extremes` are (least, greatest) end of each block's rows. Returns how many.
LMM_EXPORT int visits_of(const int32_t* extremes, int first_key, int members, int low, int high, int32_t* visits) {
    VisitOrder order{reinterpret_cast<const int2*>(extremes), first_key, members, low, high};
    int count = 0;
    if (order.none()) return count;
    for (Visit visit = order.first(); !order.over(visit); visit = order.after(visit), ++count) {
        visits[2 * count] = visit.member;
        visits[2 * count + 1] = visit.block;
    }
    return count;
}

}  // extern "C"
