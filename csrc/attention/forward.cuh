// Flash attention, forward: out = softmax(q k^T scale) v within each segment, lse = log(sum(exp(q k^T scale))). Shapes: attention.h.
//
// Bytes per call (2 an element): reads (T_q N + 2 T_k K) E 2 once from memory, writes T_q N E 2 + 4 T_q N; keys and values are read again by each tile
// of rows, from L2. 4 P N E FLOP for P visible (row, key) pairs. Floor: the larger of FLOP / MMA rate and bytes / bandwidth.
//
// A CTA holds a tile of rows of one head and walks over blocks of keys from the last to the first: blocks that need a mask come first, all others run
// a loop that knows nothing of masks. A row's result doesn't depend on the tile it is in, nor on what is packed beside it: blocks lie at multiples of
// KEYS from the segment's first key, and those that a row doesn't see leave it as it was, bit for bit.
//
// Nothing is rounded up to the tile: a warp runs an instance for as many atoms of 16 rows as it has live ones, and masked blocks leave out groups of 16
// keys that no row of an atom sees. 577 rows and keys cost 592 x 592.
//
// One block of keys and one of values are in shared memory. While scores are made of the keys, the values arrive; while they are added up, the next
// keys do. Two CTAs of a multiprocessor fill each other's gaps.
#pragma once

#include "attention/copy.cuh"
#include "attention/mma.cuh"
#include "attention/schedule.cuh"
#include "attention/softmax.cuh"

namespace lmm {

// What a CTA works on.
struct RowTile {
    RowEnds ends;
    KeyBlocks blocks;
    int row;   // first row of the tile, within its segment
    int live;  // rows of the tile that exist
    int head;

    template <class Layout>
    static __device__ RowTile of(const LmmAttentionForwardArgs& args, TilePlace place) {
        RowTile tile;
        Segment& own = tile.ends.segment;
        bool slack = place.segment == args.segments;
        own.first_row = args.cu_q[place.segment];
        own.rows = segment_end(args.cu_q, place.segment, args.segments, args.rows_q) - own.first_row;
        own.first_key = args.cu_k[place.segment];
        own.keys = slack ? 0 : args.cu_k[place.segment + 1] - own.first_key;
        tile.ends.mask = args.mask;
        tile.ends.packed_ends = args.kv_end + (args.mask == kKvEnd ? own.first_row : 0);
        int block = args.tiles != nullptr || args.mask == kFull ? place.block : ceil_div(own.rows, Layout::kRows) - 1 - place.block;
        tile.row = block * Layout::kRows;
        tile.live = min(Layout::kRows, own.rows - tile.row);
        tile.head = blockIdx.y;
        Ends extremes = slack ? Ends{0, 0} : tile.ends.over<Layout::kRows>(tile.row);
        tile.blocks = key_blocks(extremes, Layout::kKeys);
        return tile;
    }
};

// A warp's rows: ATOMS atoms of 16, from scores to the output.
template <class T, class Layout, int ATOMS>
struct WarpRows {
    // Held in registers where sums and scores leave room for it (kernels take 255); else read from shared memory for each block of keys.
    static constexpr bool kHeld = Layout::kWidth <= 64;

    using Shared = SharedRows<Layout, typename Layout::Rows>;
    using Held = HeldRows<Layout, ATOMS>;

    const RowTile& tile;
    unsigned char* const rows;
    const Shared shared;
    const int warp, lane, lane_keys, lane_values;
    const float factor;
    Held held;
    float scores[ATOMS][Layout::kKeys / 8][4];
    float sums[ATOMS][Layout::kWidth / 8][4];
    OnlineSoftmax<ATOMS> softmax;
    int end[ATOMS][2];     // of a lane's rows
    int greatest[ATOMS];   // `end` of an atom

    __device__ WarpRows(const RowTile& tile, unsigned char* rows, float scale)
        : tile(tile),
          rows(rows),
          shared(rows, threadIdx.x / 32),
          warp(threadIdx.x / 32),
          lane(threadIdx.x % 32),
          lane_keys(lane_across<typename Layout::Keys>(lane)),
          lane_values(lane_down<typename Layout::Keys>(lane)),
          factor(scale * kLog2E) {
        clear<ATOMS, Layout::kWidth>(sums);
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
            end[atom][0] = tile.ends.at(row_of(atom, 0));
            end[atom][1] = tile.ends.at(row_of(atom, 1));
            greatest[atom] = max(end[atom][0], end[atom][1]);
            for (int mate = 4; mate < 32; mate *= 2) greatest[atom] = max(greatest[atom], __shfl_xor_sync(0xffffffff, greatest[atom], mate));
        }
    }

    // Row of the segment that this lane has as the first (half 0) or second (1) of an atom.
    __device__ int row_of(int atom, int half) const { return tile.row + Layout::atom_row(warp, atom) + half * 8 + lane / 4; }

    __device__ void hold() {
        if constexpr (kHeld) held.hold(shared);
    }

    template <bool MASKED>
    __device__ auto groups(int first_key) const {
        if constexpr (MASKED) {
            SomeGroups<ATOMS> some{{}, 0};
#pragma unroll
            for (int atom = 0; atom < ATOMS; ++atom) {
                some.count[atom] = visible_groups(greatest[atom], first_key, Layout::kGroups);
                some.most = max(some.most, some.count[atom]);
            }
            return some;
        } else {
            return AllGroups<ATOMS>{};
        }
    }

    template <bool MASKED>
    __device__ void score(const unsigned char* keys, int first_key) {
        clear<ATOMS, Layout::kKeys>(scores);
        if constexpr (kHeld) {
            multiply_transposed<T, typename Layout::Keys>(scores, held, keys, lane_keys, groups<MASKED>(first_key));
        } else {
            multiply_transposed<T, typename Layout::Keys>(scores, shared, keys, lane_keys, groups<MASKED>(first_key));
        }
        if constexpr (MASKED) hide(first_key);
    }

    __device__ void hide(int first_key) {
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
#pragma unroll
            for (int i = 0; i < Layout::kKeys / 8; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int key = first_key + i * 8 + lane % 4 * 2 + j % 2;
                    if (key >= end[atom][j / 2]) scores[atom][i][j] = -INFINITY;
                }
            }
        }
    }

    __device__ void weigh() { softmax.update(scores, sums, factor); }

    template <bool MASKED>
    __device__ void add(const unsigned char* values, int first_key) {
        multiply<T, typename Layout::Keys>(sums, scores, values, lane_values, groups<MASKED>(first_key));
    }

    // Divide by the weights, and leave through the warp's own rows in shared memory, which nobody else reads.
    __device__ void finish(const LmmAttentionForwardArgs& args) {
        const Segment& own = tile.ends.segment;
        float* lse = args.lse + tile.head * args.rows_q + own.first_row;
        T* out = static_cast<T*>(args.out) + (static_cast<int64_t>(own.first_row + tile.row) * args.heads + tile.head) * Layout::kWidth;
        int64_t stride = static_cast<int64_t>(args.heads) * Layout::kWidth;
#pragma unroll
        for (int atom = 0; atom < ATOMS; ++atom) {
            int first = Layout::atom_row(warp, atom);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float whole = softmax.whole_weight(atom, half);
                float share = whole > 0.0f ? 1.0f / whole : 0.0f;
                int within_tile = first + half * 8 + lane / 4;
#pragma unroll
                for (int i = 0; i < Layout::kWidth / 8; ++i) {
                    unsigned char* place = rows + Layout::Rows::offset(within_tile, i) + lane % 4 * 4;
                    *reinterpret_cast<uint32_t*>(place) = pack2<T>(sums[atom][i][half * 2] * share, sums[atom][i][half * 2 + 1] * share);
                }
                if (lane % 4 == 0 && within_tile < tile.live) lse[row_of(atom, half)] = softmax.log_sum(atom, half, whole);
            }
            __syncwarp();
            store_atom<T, typename Layout::Rows>(out + first * stride, stride, rows, first, tile.live - first);
        }
    }
};

// A warp with no live rows: it helps to copy and keeps up with the barriers.
template <class T, class Layout>
struct WarpRows<T, Layout, 0> {
    static constexpr bool kHeld = Layout::kWidth <= 64;
    __device__ WarpRows(const RowTile&, unsigned char*, float) {}
    __device__ void hold() {}
    template <bool MASKED>
    __device__ void score(const unsigned char*, int) {}
    __device__ void weigh() {}
    template <bool MASKED>
    __device__ void add(const unsigned char*, int) {}
    __device__ void finish(const LmmAttentionForwardArgs&) {}
};

// The walk over the keys. Warps of one CTA may be in different instances: all of them issue the same copies and meet at the same barriers.
template <class T, class Layout>
struct KeyWalk {
    using Loader = TileLoader<T, typename Layout::Keys, Layout::kThreads>;

    unsigned char* const shared;
    const int segment_keys;
    Loader keys, values;  // stand at the block that is loaded next

    __device__ KeyWalk(const LmmAttentionForwardArgs& args, const RowTile& tile, unsigned char* shared)
        : shared(shared),
          segment_keys(tile.ends.segment.keys),
          keys(last_block(args.k, args.k_row, args.k_head, args, tile), args.k_row),
          values(last_block(args.v, args.v_row, args.v_head, args, tile), args.v_row) {}

    static __device__ const T* last_block(const void* base, int64_t row, int64_t head, const LmmAttentionForwardArgs& args, const RowTile& tile) {
        int64_t first = tile.ends.segment.first_key + (tile.blocks.stop - 1) * Layout::kKeys;
        return static_cast<const T*>(base) + first * row + tile.head / (args.heads / args.kv_heads) * head;
    }

    // Rows and the last block of keys are on their way; hold the rows as soon as they are there.
    template <int ATOMS>
    __device__ void start(const LmmAttentionForwardArgs& args, const RowTile& tile, WarpRows<T, Layout, ATOMS>& own) {
        int64_t first = tile.ends.segment.first_row + tile.row;
        const T* q = static_cast<const T*>(args.q) + first * args.q_row + tile.head * args.q_head;
        TileLoader<T, typename Layout::Rows, Layout::kThreads> rows(q, args.q_row);
        rows.template load<true>(shared + Layout::kRowsAt, tile.live);
        keys.template load<true>(shared + Layout::kKeysAt, segment_keys - (tile.blocks.stop - 1) * Layout::kKeys);
        if constexpr (WarpRows<T, Layout, ATOMS>::kHeld) {
            cp_async_wait<1>();  // the keys may still be under way
            __syncthreads();     // everybody's part of the rows is there
            own.hold();
        }
    }

    template <bool MASKED, int ATOMS>
    __device__ void visit(int block, WarpRows<T, Layout, ATOMS>& own) {
        int first_key = block * Layout::kKeys;
        cp_async_wait<0>();
        __syncthreads();  // the block's keys are there, and no warp reads the previous values any more
        values.template load<MASKED>(shared + Layout::kValuesAt, segment_keys - first_key);
        values.step_back();
        own.template score<MASKED>(shared + Layout::kKeysAt, first_key);
        cp_async_wait<0>();
        __syncthreads();  // the block's values are there, and no warp reads its keys any more
        if (block > 0) {
            keys.step_back();
            keys.template load<false>(shared + Layout::kKeysAt, 0);  // only the last block can be cut short
        }
        own.weigh();
        own.template add<MASKED>(shared + Layout::kValuesAt, first_key);
    }
};

template <class T, class Layout, int ATOMS>
__device__ void attend(const LmmAttentionForwardArgs& args, const RowTile& tile, unsigned char* shared) {
    WarpRows<T, Layout, ATOMS> own(tile, shared + Layout::kRowsAt, args.scale);
    if (tile.blocks.stop > 0) {
        KeyWalk<T, Layout> walk(args, tile, shared);
        walk.start(args, tile, own);
        int block = tile.blocks.stop - 1;
        for (; block >= tile.blocks.masked; --block) walk.template visit<true>(block, own);
        for (; block >= 0; --block) walk.template visit<false>(block, own);
    }
    own.finish(args);
}

template <class T, class Layout>
__global__ void __launch_bounds__(Layout::kThreads) attention_forward(const __grid_constant__ LmmAttentionForwardArgs args) {
    LMM_DYNAMIC_SHARED(unsigned char, shared);
    TilePlace place = tile_of<Layout::kRows>(args, blockIdx.x);
    if (place.segment > args.segments) return;
    RowTile tile = RowTile::of<Layout>(args, place);
    static_assert(Layout::kAtoms == 2, "an instance for each number of live atoms");
    int atoms = Layout::live_atoms(threadIdx.x / 32, tile.live);
    if (atoms == 2) {
        attend<T, Layout, 2>(args, tile, shared);
    } else if (atoms == 1) {
        attend<T, Layout, 1>(args, tile, shared);
    } else {
        attend<T, Layout, 0>(args, tile, shared);
    }
}

}  // namespace lmm
