// Flash attention, backward. With p = exp(score - lse), dp = dO v^T, delta = rowsum(dO O) - dlse and ds = p (dp - delta):
//
//     dv = p^T dO      dk = scale ds^T q      dq = scale ds k
//
// Shapes: attention.h. Five products, 10 P N E FLOP for P visible (row, key) pairs; a scheme of two kernels, one for dk and dv and one for dq, needs seven. For
// 0.9 of the speed of five products it would have to multiply 1.26 times as fast, beyond what the forward reaches.
//
// A CTA holds 128 keys of one kv head and walks over the rows of all query heads of the group that see them, adding dk and dv in fp32 registers. dq is added
// up in memory, in order (backward_turns.cuh). Scores, weights and ds exist for one block of rows at a time.
//
// Bytes from memory at least, 2 an element: (3 T_q N + 2 T_k K) E 2 read and (T_q N + 2 T_k K) E 2 written. Between CTAs and L2, for each block of rows and
// tile of keys: ROWS E 4 of rows and gradients in, ROWS E 4 of dq added. Floor: the larger of FLOP / MMA rate and bytes / bandwidth.
//
// Two roles of four warps, a warp of each on every scheduler; both have all keys. What one computes between products, the other fills with products:
//
//     value warps   p^T = exp(k q^T)                        |  dv += p^T dO
//     key warps     dq += ds k (block before)   dp^T = v dO^T  |  ds^T = p^T (dp^T - delta)   dk += ds^T q
//                 ^ rows are there, ds is there             ^ p is there                        ^ next block
//
// Two barriers a block. A warp has 32 keys and all rows of the block, or 32 rows and half the columns of dq, so that each fragment from shared memory is used
// twice or more. Bytes between shared memory and tensor cores per block, at 128 | 64 columns (KiB): scores and dp 192 | 96, dv and dk 128 | 64, dq 96 | 64, p and
// ds 48 | 48, copies 32 | 16; in all 496 | 288 for 2560 | 1280 products of 4096 FLOP, 3968 | 2304 of the 5120 | 2560 clocks that an A100 multiplies for.
#pragma once

#include "attention/backward_turns.cuh"
#include "attention/copy.cuh"
#include "attention/softmax.cuh"

namespace lmm {

// The barrier of both roles, in one place: whoever comes to it meets the others here.
__device__ __forceinline__ void meet_roles() { __syncthreads(); }

// One of two places for what belongs to a block of rows.
template <class Tile>
struct BlockStage {
    unsigned char* const shared;
    const int number;

    __device__ unsigned char* rows() const { return shared + Tile::kRowsAt + number * Tile::Rows::kBytes; }
    __device__ unsigned char* grads() const { return shared + Tile::kGradsAt + number * Tile::Rows::kBytes; }
    __device__ unsigned char* weights() const { return shared + Tile::kWeightsAt + number * Tile::Weights::kBytes; }
    __device__ unsigned char* numbers(int kind) const { return shared + Tile::kNumbersAt + (number * 3 + kind) * Tile::kNumberBytes; }
    // Of the rows i * 8 + this lane's two of a transposed accumulator.
    template <class Pair>
    __device__ Pair pair(int kind, int i) const {
        return *reinterpret_cast<const Pair*>(numbers(kind) + (i * 8 + threadIdx.x % 4 * 2) * 4);
    }
    __device__ float2 logs(int i) const { return pair<float2>(0, i); }
    __device__ float2 deltas(int i) const { return pair<float2>(1, i); }
    __device__ int2 ends(int i) const { return pair<int2>(2, i); }
    __device__ BlockStage other() const { return {shared, number ^ 1}; }
};

// What both roles know: the tile, the walk, and where a warp's keys lie.
template <class T, class Tile>
struct Role {
    const BackwardCall& call;
    const KeyTile& tile;
    const Walk& walk;
    unsigned char* const shared;
    const int warp, lane;
    const int lane_rows;     // lane_across of a block of rows: as B of scores and dp
    const int lane_columns;  // lane_down: as B of dv and dk

    __device__ Role(const BackwardCall& call, const KeyTile& tile, const Walk& walk, unsigned char* shared)
        : call(call), tile(tile), walk(walk), shared(shared), warp(threadIdx.x / 32 % Tile::kRoleWarps), lane(threadIdx.x % 32),
          lane_rows(lane_across<typename Tile::Rows>(lane)), lane_columns(lane_down<typename Tile::Rows>(lane)) {}

    __device__ bool edge(const Visit& visit) const { return visit.edge(tile.first_key + Tile::kKeys); }
    __device__ const int32_t* group_ends(const Visit& visit) const {
        return call.work.group_ends + static_cast<int64_t>(tile.first_slot + visit.block) * Tile::kGroups;
    }

    // Do something with what the warp's keys and the block's rows have to do with each other.
    template <class Do>
    __device__ void with_seen(const Visit& visit, Do act) const {
        if (edge(visit)) {
            act(SomeSeen<Tile>(group_ends(visit), tile.first_key, warp));
        } else {
            act(AllSeen<Tile>{});
        }
    }

    // Weights (or ds) of an atom of keys and a group of rows: as accumulators hold them, four bytes a lane.
    __device__ void write_weights(unsigned char* to, const uint32_t (&values)[4], int atom, int group) const {
        int own = Tile::Weights::offset(lane / 4, 0) + Tile::atom_row(warp, 0) * kPageRowBytes + lane % 4 * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            *reinterpret_cast<uint32_t*>(to + Tile::Weights::from_lane(own, Tile::atom_row(0, atom) + i % 2 * 8, group * 2 + i / 2)) = values[i];
        }
    }
    __device__ void read_weights(uint32_t (&values)[4], const unsigned char* from, int atom, int group) const {
        int own = lane_down<typename Tile::Weights>(lane) + Tile::atom_row(warp, 0) * kPageRowBytes;
        ldmatrix_x4(values, from + Tile::Weights::from_lane(own, Tile::atom_row(0, atom), group * 2));
    }

    // A gradient of the warp's keys leaves through their rows of a tile in shared memory that nobody else uses any more.
    __device__ void store(const float (&sums)[Tile::kAtoms][Tile::kWidth / 8][4], float factor, unsigned char* through, void* gradient) const {
        int64_t stride = static_cast<int64_t>(call.args.kv_heads) * Tile::kWidth;
        T* first = static_cast<T*>(gradient) + (tile.own.first_key + tile.first_key) * stride + tile.kv_head * Tile::kWidth;
#pragma unroll
        for (int atom = 0; atom < Tile::kAtoms; ++atom) {
            int key = Tile::atom_row(warp, atom);
#pragma unroll
            for (int i = 0; i < Tile::kWidth / 8; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    unsigned char* place = through + Tile::Keys::offset(key + half * 8 + lane / 4, i) + lane % 4 * 4;
                    *reinterpret_cast<uint32_t*>(place) = pack2<T>(sums[atom][i][half * 2] * factor, sums[atom][i][half * 2 + 1] * factor);
                }
            }
            __syncwarp();
            store_atom<T, typename Tile::Keys>(first + key * stride, stride, through, key, tile.live - key);
        }
    }
};

// Warps 0..3: weights and dv, and all copies.
template <class T, class Tile>
struct ValueRole : Role<T, Tile> {
    using Base = Role<T, Tile>;
    using Base::call, Base::tile, Base::walk, Base::shared, Base::warp, Base::lane;
    float sums[Tile::kAtoms][Tile::kWidth / 8][4];

    using Base::Base;

    __device__ void run() {
        clear<Tile::kAtoms, Tile::kWidth>(sums);
        if (!walk.none()) {
            load_tile();
            BlockStage<Tile> stage{shared, 0};
            Visit visit = walk.first();
            load(visit, stage);
            for (int number = 0;; number ^= 1) {
                BlockStage<Tile> stage{shared, number};
                cp_async_wait<0>();
                meet_roles();  // the block is there; nobody reads the one before it any more, but for its ds
                Visit next = walk.after(visit);
                if (!walk.over(next)) load(next, stage.other());
                Base::with_seen(visit, [&](auto seen) { see(stage, seen); });
                if (walk.over(next)) break;
                visit = next;
            }
            meet_roles();  // for the key warps' last dq
        }
        Base::store(sums, 1.0f, shared + Tile::kValuesAt, call.args.dv);
    }

    template <class Seen>
    __device__ void see(const BlockStage<Tile>& stage, const Seen& seen) {
        uint32_t weights[Tile::kAtoms][Tile::kGroups][4];
        weigh(weights, stage, seen);
        meet_roles();  // the key warps may read the weights
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            if (!seen.any(group)) continue;
            uint32_t own[Tile::kAtoms][4];
#pragma unroll
            for (int i = 0; i < Tile::kAtoms * 4; ++i) own[i / 4][i % 4] = weights[i / 4][group][i % 4];
            multiply_weights<T, Tile>(sums, own, stage.grads(), Base::lane_columns, group, seen);
        }
    }

    template <class Seen>
    __device__ void weigh(uint32_t (&weights)[Tile::kAtoms][Tile::kGroups][4], const BlockStage<Tile>& stage, const Seen& seen) {
        float scores[Tile::kAtoms][Tile::kRows / 8][4];
        clear<Tile::kAtoms, Tile::kRows>(scores);
        SharedRows<Tile, typename Tile::Keys> keys(shared + Tile::kKeysAt, warp);
        multiply_keys_rows<T, Tile>(scores, keys, stage.rows(), Base::lane_rows, seen);
        float factor = call.args.scale * kLog2E;
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            if (!seen.any(group)) continue;
#pragma unroll
            for (int i = group * 2; i < group * 2 + 2; ++i) {
                float2 log = stage.logs(i);
#pragma unroll
                for (int atom = 0; atom < Tile::kAtoms; ++atom) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) scores[atom][i][j] = exp2_fast(fmaf(scores[atom][i][j], factor, j % 2 ? log.y : log.x));
                    if constexpr (!Seen::kAll) hide(scores[atom][i], stage.ends(i), atom);
                }
            }
#pragma unroll
            for (int atom = 0; atom < Tile::kAtoms; ++atom) {
                as_operand<T>(weights[atom][group], scores[atom][group * 2], scores[atom][group * 2 + 1]);
                if (seen.has(atom, group)) Base::write_weights(stage.weights(), weights[atom][group], atom, group);
            }
        }
    }

    __device__ void hide(float (&weights)[4], int2 ends, int atom) const {
        int key = tile.first_key + Tile::atom_row(warp, atom) + lane / 4;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (key + j / 2 * 8 >= (j % 2 ? ends.y : ends.x)) weights[j] = 0.0f;
        }
    }

    // The tile of keys and values, on its way.
    __device__ void load_tile() const {
        using Loader = TileLoader<T, typename Tile::Keys, Tile::kRoleThreads>;
        const LmmAttentionBackwardArgs& args = call.args;
        int64_t first = tile.own.first_key + tile.first_key;
        const T* k = static_cast<const T*>(args.k) + first * args.k_row + tile.kv_head * args.k_head;
        const T* v = static_cast<const T*>(args.v) + first * args.v_row + tile.kv_head * args.v_head;
        Loader(k, args.k_row).template load<true>(shared + Tile::kKeysAt, tile.live);
        Loader(v, args.v_row).template load<true>(shared + Tile::kValuesAt, tile.live);
    }

    // A block of rows, its gradients and numbers, on their way.
    __device__ void load(const Visit& visit, const BlockStage<Tile>& stage) const {
        using Loader = TileLoader<T, typename Tile::Rows, Tile::kRoleThreads>;
        const LmmAttentionBackwardArgs& args = call.args;
        int64_t head = tile.kv_head * (args.heads / args.kv_heads) + visit.member, slot = tile.first_slot + visit.block;
        int kind = threadIdx.x / (Tile::kRows / 4), four = threadIdx.x % (Tile::kRows / 4) * 4;
        if (kind < 3) {
            int64_t of_head = (head * call.slots + slot) * Tile::kRows + four;
            const void* from = call.work.row_ends + slot * Tile::kRows + four;
            if (kind < 2) from = (kind == 0 ? call.work.logs : call.work.deltas) + of_head;
            cp_async_16(stage.numbers(kind) + four * 4, from, true);
        }
        int64_t first = tile.own.first_row + visit.block * Tile::kRows;
        int live = tile.own.rows - visit.block * Tile::kRows;
        const T* q = static_cast<const T*>(args.q) + first * args.q_row + head * args.q_head;
        const T* grad = static_cast<const T*>(args.grad) + first * args.grad_row + head * args.grad_head;
        Loader(q, args.q_row).template load<true>(stage.rows(), live);
        Loader(grad, args.grad_row).template load<true>(stage.grads(), live);
    }
};

// Warps 4..7: dp, ds, dk and dq.
template <class T, class Tile>
struct KeyRole : Role<T, Tile> {
    using Base = Role<T, Tile>;
    using Base::call, Base::tile, Base::walk, Base::shared, Base::warp, Base::lane;
    float sums[Tile::kAtoms][Tile::kWidth / 8][4];
    QueryTurns<T, Tile> turns;

    __device__ KeyRole(const BackwardCall& call, const KeyTile& tile, const Walk& walk, unsigned char* shared)
        : Base(call, tile, walk, shared), turns(call, tile, Base::warp) {}

    __device__ void run() {
        clear<Tile::kAtoms, Tile::kWidth>(sums);
        if (!walk.none()) {
            Visit before{-1, 0, {0, 0}}, visit = walk.first();
            for (int number = 0;; number ^= 1) {
                BlockStage<Tile> stage{shared, number};
                meet_roles();  // the block is there, and ds of the one before it
                if (before.member >= 0) add_queries(before, stage.other());
                if (walk.over(visit)) break;
                Base::with_seen(visit, [&](auto seen) { see(stage, seen); });
                before = visit;
                visit = walk.after(visit);
            }
            turns.pass_on();
        }
        Base::store(sums, call.args.scale, shared + Tile::kRowsAt, call.args.dk);
    }

    template <class Seen>
    __device__ void see(const BlockStage<Tile>& stage, const Seen& seen) {
        float slopes[Tile::kAtoms][Tile::kRows / 8][4];
        clear<Tile::kAtoms, Tile::kRows>(slopes);
        SharedRows<Tile, typename Tile::Keys> values(shared + Tile::kValuesAt, warp);
        multiply_keys_rows<T, Tile>(slopes, values, stage.grads(), Base::lane_rows, seen);
        turns.pass_on();
        meet_roles();  // the weights are there
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            if (!seen.any(group)) continue;
            uint32_t own[Tile::kAtoms][4];
            float2 deltas[2] = {stage.deltas(group * 2), stage.deltas(group * 2 + 1)};
#pragma unroll
            for (int atom = 0; atom < Tile::kAtoms; ++atom) {
                if (!seen.has(atom, group)) continue;
                Base::read_weights(own[atom], stage.weights(), atom, group);
                __syncwarp();  // all lanes hold the weights, and other lanes' places take the slopes
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float2 weights = unpack2<T>(own[atom][i]), delta = deltas[i / 2];
                    const float (&dp)[4] = slopes[atom][group * 2 + i / 2];
                    own[atom][i] = pack2<T>(weights.x * (dp[i % 2 * 2] - delta.x), weights.y * (dp[i % 2 * 2 + 1] - delta.y));
                }
                Base::write_weights(stage.weights(), own[atom], atom, group);
            }
            multiply_weights<T, Tile>(sums, own, stage.rows(), Base::lane_columns, group, seen);
        }
    }

    // dq of a block whose ds is there.
    __device__ void add_queries(const Visit& visit, const BlockStage<Tile>& stage) {
        QueryPart<Tile> part;
        clear<Tile::kPartRows / kAtom, Tile::kPartColumns>(part);
        if (Base::edge(visit)) {
            const int32_t* ends = Base::group_ends(visit) + Tile::part_row(warp) / kAtom;
            SomeGroups<2> some{{visible_groups(ends[0], tile.first_key, Tile::kSteps), visible_groups(ends[1], tile.first_key, Tile::kSteps)}, 0};
            some.most = max(some.count[0], some.count[1]);
            multiply_slopes<T, Tile>(part, stage.weights(), shared + Tile::kKeysAt, warp, some);
        } else {
            multiply_slopes<T, Tile>(part, stage.weights(), shared + Tile::kKeysAt, warp, AllGroups<2>{});
        }
        turns.add(part, visit);
    }
};

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) attention_backward(const __grid_constant__ BackwardCall call) {
    LMM_DYNAMIC_SHARED(unsigned char, shared);
    int* ticket = reinterpret_cast<int*>(shared + Tile::kWeightsAt);
    if (threadIdx.x == 0) *ticket = atomicAdd(call.work.ticket, 1);
    __syncthreads();  // the ticket is there; weights are written after the next barrier
    KeyTile tile = KeyTile::of<Tile>(call, *ticket);
    if (tile.live <= 0) return;
    Walk walk(call.work.extremes, tile, call.args.heads / call.args.kv_heads);
    if (threadIdx.x < Tile::kRoleThreads) {
        ValueRole<T, Tile>(call, tile, walk, shared).run();
    } else {
        KeyRole<T, Tile>(call, tile, walk, shared).run();
    }
}

}  // namespace lmm
