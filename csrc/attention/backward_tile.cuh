// Sizes of the backward, where its bytes lie, and which CTA does what: arithmetic of constants, shared by all its kernels and tested on the host.
//
// Blocks of ROWS rows and tiles of KEYS keys are counted from a segment's first. Without a prefix sum over the segments each gets a place of its own in
// arrays for all of them: block i of segment s is in slot cu[s] / ROWS + s + i. That many slots are enough: a segment of n rows has ceil(n / ROWS) blocks,
// and (cu[s] + n) / ROWS + 1 - cu[s] / ROWS is never less. The slack is one more segment.
#pragma once

#include "attention/mask.cuh"

namespace lmm {

// What a CTA of the backward holds (a tile of keys and values) and walks over (blocks of rows of q and of the gradient of out).
//
// Eight warps in two roles of four; warp w of either role has the atoms w and w + 4 of 16 keys. A role's gradient is 32 keys x WIDTH a warp in registers.
template <int WIDTH>
struct BackwardTile {
    static constexpr int kWidth = WIDTH;
    static constexpr int kKeys = 128;
    static constexpr int kRows = 64;
    static constexpr int kRoleWarps = 4;
    static constexpr int kRoleThreads = kRoleWarps * 32;
    static constexpr int kThreads = 2 * kRoleThreads;
    static constexpr int kAtoms = kKeys / kAtom / kRoleWarps;  // of keys, of a warp
    static constexpr int kGroups = kRows / kAtom;              // groups of 16 rows in a block
    static constexpr int kSteps = kKeys / kAtom;               // groups of 16 keys in the tile

    using Keys = SharedTile<kKeys, WIDTH>;
    using Rows = SharedTile<kRows, WIDTH>;
    using Weights = SharedTile<kKeys, kRows>;  // p^T, then ds^T: a row for each key

    // First key of a warp's atom within the tile.
    static constexpr __host__ __device__ int atom_row(int warp, int atom) { return (atom * kRoleWarps + warp) * kAtom; }

    // Of dq, a warp adds up 32 rows x half the columns.
    static constexpr int kPartRows = 32;
    static constexpr int kPartColumns = WIDTH / 2;
    static constexpr int kColumnParts = WIDTH / kPartColumns;
    static constexpr __host__ __device__ int part_row(int warp) { return warp / kColumnParts * kPartRows; }
    static constexpr __host__ __device__ int part_column(int warp) { return warp % kColumnParts * kPartColumns; }
    static_assert(kRows / kPartRows * kColumnParts == kRoleWarps, "each part of dq is one warp's");

    // Shared memory: the tile; two stages of rows, gradients and three numbers a row; weights of two blocks.
    static constexpr int kStages = 2;
    static constexpr int kKeysAt = 0;
    static constexpr int kValuesAt = kKeysAt + Keys::kBytes;
    static constexpr int kRowsAt = kValuesAt + Keys::kBytes;
    static constexpr int kGradsAt = kRowsAt + kStages * Rows::kBytes;
    static constexpr int kWeightsAt = kGradsAt + kStages * Rows::kBytes;
    static constexpr int kNumbersAt = kWeightsAt + kStages * Weights::kBytes;
    static constexpr int kNumberBytes = kRows * 4;
    static constexpr int kSharedBytes = kNumbersAt + kStages * 3 * kNumberBytes;
    static_assert(kSharedBytes <= 163 * 1024, "one CTA of an A100");
    static_assert(kStages * Rows::kBytes >= Keys::kBytes, "a gradient leaves through the place of the rows");
};

// Slots of rows or keys in arrays over all segments, and the first one of a segment.
constexpr __host__ __device__ int slot_count(int64_t rows, int segments, int block) { return static_cast<int>(rows / block) + segments + 1; }
constexpr __host__ __device__ int first_slot(int begin, int segment, int block) { return begin / block + segment; }

// CTAs take tickets as they begin, and work in the order of tickets, in which a tile of keys comes after all tiles of the same segment and head before
// it: that is what makes waiting for them safe. Heads come together in bunches and take turns at a tile. So many are under way that CTAs of one head
// follow each other at a distance, and so few that several of them read the same rows out of L2 at about the same time.
struct TicketOrder {
    static constexpr int kBunch = 8;
    int slots, kv_heads;

    constexpr __host__ __device__ int64_t count() const { return static_cast<int64_t>(slots) * kv_heads; }
    constexpr __host__ __device__ int bunch_heads(int bunch) const { return within(0, kv_heads - bunch * kBunch, kBunch); }
    constexpr __host__ __device__ int bunch_of(int ticket) const { return ticket / (slots * kBunch); }
    constexpr __host__ __device__ int rest(int ticket) const { return ticket - bunch_of(ticket) * slots * kBunch; }
    constexpr __host__ __device__ int slot(int ticket) const { return rest(ticket) / bunch_heads(bunch_of(ticket)); }
    constexpr __host__ __device__ int head(int ticket) const { return bunch_of(ticket) * kBunch + rest(ticket) % bunch_heads(bunch_of(ticket)); }
};

// What the kernels leave each other in global memory. Nothing of it need be cleared: the first kernel writes whatever the second reads.
struct BackwardWorkspace {
    float* sums;         // [N, slots, ROWS * WIDTH] dq of a block as far as it has been added up, in the order in which warps hold it
    float* logs;         // [N, slots * ROWS] -lse in units of log2; -inf for rows that see nothing or don't exist
    float* deltas;       // [N, slots * ROWS] rowsum(dO O) - dlse
    int32_t* row_ends;   // [slots * ROWS] one past the last key that a row sees, of its segment
    int32_t* group_ends; // [slots, ROWS / 16] the greatest of 16 rows
    int2* extremes;      // [slots] least and greatest of a block
    int32_t* turns;      // [N, slots, warps] whose turn it is to add to a part of dq: the next tile's
    int32_t* ticket;     // the next CTA's

    // Lays the arrays out from `base` on, and returns the bytes they take.
    template <class Tile>
    __host__ int64_t lay_out(unsigned char* base, int64_t rows, int segments, int heads) {
        int64_t slots = slot_count(rows, segments, Tile::kRows), at = 0;
        auto take = [&](auto*& place, int64_t count) {
            place = reinterpret_cast<std::decay_t<decltype(place)>>(base + at);
            at += (count * static_cast<int64_t>(sizeof(*place)) + 255) / 256 * 256;
        };
        take(sums, heads * slots * Tile::kRows * Tile::kWidth);
        take(logs, heads * slots * Tile::kRows);
        take(deltas, heads * slots * Tile::kRows);
        take(row_ends, slots * Tile::kRows);
        take(group_ends, slots * Tile::kGroups);
        take(extremes, slots);
        take(turns, heads * slots * Tile::kRoleWarps);
        take(ticket, 1);
        return at;
    }
};

// The arguments and what the launcher makes of them.
struct BackwardCall {
    LmmAttentionBackwardArgs args;
    BackwardWorkspace work;
    int32_t slots;      // of rows
    int32_t key_slots;  // of keys
};

// The segment (or slack) that a slot belongs to: the last one that begins at or before it. For a whole warp, 32 candidates at a time.
template <int BLOCK>
__device__ int segment_of(int slot, const int32_t* cu, int segments) {
    int first = 0, count = segments + 1;
    while (count > 1) {
        int stride = ceil_div(count, 32), candidate = static_cast<int>(threadIdx.x % 32) * stride;
        bool before = candidate < count && first_slot(cu[first + candidate], first + candidate, BLOCK) <= slot;
        int passed = (__popc(__ballot_sync(0xffffffff, before)) - 1) * stride;
        first += passed;
        count = min(stride, count - passed);
    }
    return first;
}

}  // namespace lmm
