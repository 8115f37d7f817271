// Attention of few rows against many keys, the keys split over CTAs and over the warps of a CTA: decoding from a cache.
//
// Bytes per call (16-bit elements): reads 4 T_k K E once, which is the floor: 4 T_k K E / bandwidth; the parts of split segments are written and read
// once more, 8 N E bytes each, from L2. Tiles are 16 or 32 packed rows: a segment with more (rows times heads of a group) reads its keys again from L2.
//
// Why mma even for one row: a step of 16 keys of 128 is 8 KiB, which an SM of an A100 (2.04 TB/s, 108 SMs, 1.41 GHz) is sent in 610 cycles at most. In these
// it can issue 2400 instructions, and a step takes about 300, 32 of them mma, whose rows are 15/16 padding. Nothing but bytes counts, and bytes under way:
// bandwidth times latency is 13.4 B a cycle times about 1000 cycles, 13 KiB an SM; two CTAs of 64 KiB of rings have 64 to 128 KiB.
//
// Deterministic: which keys a part has follows from lengths and arguments, and what parts and warps have found is added in their order.
#pragma once

#include "decode_stream.cuh"
#include "mma.cuh"
#include "softmax.cuh"

namespace lmm {

// softcap tanh(score scale / softcap), by one ex2.
__device__ inline float soft_capped(float score, float scale, float softcap) {
    return softcap - 2.0f * softcap / (exp2_fast(score * scale * (2.0f * kLog2E / softcap)) + 1.0f);
}

// Rows after the last segment see nothing.
template <class T>
__device__ void zero_slack(const LmmAttentionDecodeArgs& args, int kv_head) {
    const int group = args.heads / args.kv_heads, chunks = args.head_dim / kChunkElements;
    for (int64_t row = args.cu_q[args.segments]; row < args.rows_q; ++row) {
        for (int i = threadIdx.x; i < group * chunks; i += blockDim.x) {
            const int head = kv_head * group + i / chunks;
            T* const to = static_cast<T*>(args.out) + (row * args.heads + head) * args.head_dim + i % chunks * kChunkElements;
            *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
            if (i % chunks == 0) args.lse[head * args.rows_q + row] = -INFINITY;
        }
    }
}

// What the warps have found of a part, in shared memory: sums of weighted values, their `top`, sums of weights.
template <class Tile>
struct Found {
    float *sums, *tops, *weights;

    __device__ explicit Found(unsigned char* shared)
        : sums(reinterpret_cast<float*>(shared)), tops(reinterpret_cast<float*>(shared + Tile::kTopsAt)), weights(reinterpret_cast<float*>(shared + Tile::kWeightsAt)) {}

    __device__ void put(const float (&own)[Tile::kAtoms][Tile::kWidth / 8][4], const OnlineSoftmax<Tile::kAtoms>& softmax) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int atom = 0; atom < Tile::kAtoms; ++atom) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp * Tile::kRows + atom * kAtom + half * 8 + lane / 4;
#pragma unroll
                for (int i = 0; i < Tile::kWidth / 8; ++i) {
                    float2* const to = reinterpret_cast<float2*>(sums + row * Tile::kSumsRow + i * 8 + lane % 4 * 2);
                    *to = make_float2(own[atom][i][half * 2], own[atom][i][half * 2 + 1]);
                }
                const float whole = softmax.whole_weight(atom, half);
                if (lane % 4 != 0) continue;
                tops[row] = softmax.top[atom][half];
                weights[row] = whole;
            }
        }
    }

    // Eight columns of a row, normalised; returns the logarithm to base 2 of its sum of weights, -inf for none.
    __device__ float whole(float (&values)[8], int row, int column) const {
        float top = kLowest, weight = 0.0f;
#pragma unroll
        for (int warp = 0; warp < Tile::kWarps; ++warp) top = fmaxf(top, tops[warp * Tile::kRows + row]);
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = 0.0f;
#pragma unroll
        for (int warp = 0; warp < Tile::kWarps; ++warp) {
            const int at = warp * Tile::kRows + row;
            const float share = exp2_fast(tops[at] - top);
            const float4* const from = reinterpret_cast<const float4*>(sums + at * Tile::kSumsRow + column);
            const float4 left = from[0], right = from[1];
            const float eight[8] = {left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w};
            weight += share * weights[at];
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i] += share * eight[i];
        }
        const float inverse = weight > 0.0f ? 1.0f / weight : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] *= inverse;
        return weight > 0.0f ? top + log2_fast(weight) : -INFINITY;
    }
};

// Write the result of a segment with one part, or the part: fp32, with its logarithm.
template <class Tile>
__device__ void write_part(const LmmAttentionDecodeArgs& args, const PackedRows& rows, const Part& part, int index, const Found<Tile>& found) {
    using T = typename Tile::T;
    for (int item = threadIdx.x; item < Tile::kRows * Tile::Rows::kChunks; item += Tile::kThreads) {
        const int place = item / Tile::Rows::kChunks, column = item % Tile::Rows::kChunks * kChunkElements;
        if (!rows.live(place)) break;  // and none after it
        const int row = rows.row(place), head = rows.head(place);
        float values[8];
        const float log = found.whole(values, place, column);
        if (part.count == 1) {
            const int64_t packed = rows.segment.first_row + row;
            const uint4 chunk = make_uint4(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]), pack2<T>(values[4], values[5]), pack2<T>(values[6], values[7]));
            *reinterpret_cast<uint4*>(static_cast<T*>(args.out) + (packed * args.heads + head) * Tile::kWidth + column) = chunk;
            if (column == 0) args.lse[head * args.rows_q + packed] = log * kLn2;
        } else {
            const int64_t at = (int64_t{index} * args.longest_q + row) * args.heads + head;
            float4* const to = reinterpret_cast<float4*>(args.partial + at * Tile::kWidth + column);
            to[0] = make_float4(values[0], values[1], values[2], values[3]);
            to[1] = make_float4(values[4], values[5], values[6], values[7]);
            if (column == 0) args.partial_log[at] = log;
        }
    }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) attention_decode_kernel(const __grid_constant__ LmmAttentionDecodeArgs args) {
    using T = typename Tile::T;
    using Keys = typename Tile::Keys;
    constexpr int kAtoms = Tile::kAtoms;
    LMM_DYNAMIC_SHARED(unsigned char, shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // Prologue: which rows of which segment, and which part of its keys. Tiles of one part stand beside each other: what they share comes from L2.
    const int group = args.heads / args.kv_heads;
    const int blocks = ceil_div(args.longest_q * group, Tile::kRows), tiles = args.kv_heads * blocks;
    const int index = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    if (index >= args.parts) {
        zero_slack<T>(args, tile);
        return;
    }
    const Part part = find_part(args, index);
    if (part.segment == args.segments) return;
    if (tile == 0 && part.index == 0 && threadIdx.x == 0 && args.ranges != nullptr) {
        args.ranges[2 * part.segment] = index;
        args.ranges[2 * part.segment + 1] = part.count;
    }
    const PackedRows rows{decode_segment(args, part.segment), group, tile / blocks, tile % blocks * Tile::kRows};
    if (!rows.live(0)) return;

    // The rows, once for all warps, then the first steps of each warp's keys.
    for (int item = threadIdx.x; item < Tile::kRows * Tile::Rows::kChunks; item += Tile::kThreads) {
        const int place = item / Tile::Rows::kChunks, chunk = item % Tile::Rows::kChunks;
        const bool live = rows.live(place);
        const int64_t at = live ? (rows.segment.first_row + rows.row(place)) * args.q_row + rows.head(place) * args.q_head + chunk * kChunkElements : 0;
        cp_async_16(shared + Tile::Rows::offset(place, chunk), static_cast<const T*>(args.q) + at, live);
    }
    cp_async_commit();
    const int low = first_visible(rows.segment.rows, rows.segment.keys, args.window), origin = low / kStepKeys * kStepKeys;
    const int begin = origin + part_begin(part, part.index) * kStepKeys;
    const int end = min(origin + part_begin(part, part.index + 1) * kStepKeys, rows.segment.keys);
    unsigned char* const ring = shared + Tile::kRingsAt + warp * Tile::kStages * Tile::kStepBytes;
    int key = begin + warp * kStepKeys;
    KeyStream<Tile> stream(args, part.segment, rows.kv_head, rows.segment.first_key, key, low, end);
#pragma unroll
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) stream.issue(ring + stage * Tile::kStepBytes);

    // Where each row of this lane begins and ceases to see.
    int lows[kAtoms][2], highs[kAtoms][2];
#pragma unroll
    for (int atom = 0; atom < kAtoms; ++atom) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place = atom * kAtom + half * 8 + lane / 4;
            lows[atom][half] = rows.low(place, args.window);
            highs[atom][half] = min(rows.high(place, args.causal ? kCausal : kFull), end);
        }
    }
    const float factor = args.softcap > 0.0f ? kLog2E : args.scale * kLog2E;
    const SharedRows<Tile, typename Tile::Rows> queries(shared, 0);
    float sums[kAtoms][Tile::kWidth / 8][4];
    clear<kAtoms, Tile::kWidth>(sums);
    OnlineSoftmax<kAtoms> softmax;
    cp_async_wait<Tile::kStages - 1>();
    __syncthreads();  // the rows have landed for all threads, which each copied some

    // The loop: no other barrier than the warp's own. A mask in every step costs nothing beside its bytes.
    for (int step = 0; key < end; ++step, key += Tile::kWarps * kStepKeys) {
        stream.issue(ring + ((step + Tile::kStages - 1) & (Tile::kStages - 1)) * Tile::kStepBytes);  // where the step before was
        cp_async_wait<Tile::kStages - 1>();
        __syncwarp();  // this step has landed, for all lanes
        const unsigned char* const stage = ring + (step & (Tile::kStages - 1)) * Tile::kStepBytes;
        float scores[kAtoms][2][4];
        clear<kAtoms, kStepKeys>(scores);
        multiply_transposed<T, Keys, kAtoms>(scores, queries, stage, lane_across<Keys>(lane), AllGroups<kAtoms>());
#pragma unroll
        for (int atom = 0; atom < kAtoms; ++atom) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& score = scores[atom][i / 4][i % 4];
                const int at = key + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i % 4 / 2;
                if (args.softcap > 0.0f) score = soft_capped(score, args.scale, args.softcap);
                if (at < lows[atom][half] || at >= highs[atom][half]) score = -INFINITY;
            }
        }
        softmax.update(scores, sums, factor);
        multiply<T, Keys, kAtoms>(sums, scores, stage + Keys::kBytes, lane_down<Keys>(lane), AllGroups<kAtoms>());
        __syncwarp();  // all lanes have read this step before the next issue writes there
    }

    // Epilogue: the warps' findings take the place of rows and rings, then are added in the order of warps.
    cp_async_wait<0>();
    __syncthreads();
    const Found<Tile> found(shared);
    found.put(sums, softmax);
    __syncthreads();
    write_part<Tile>(args, rows, part, index, found);
}

// One row of one head of a segment with several parts: teams of threads take parts in turn, and the teams' sums are added in their order.
template <class T, int WIDTH>
__global__ void __launch_bounds__(128) attention_combine_kernel(const __grid_constant__ LmmAttentionDecodeArgs args) {
    constexpr int kTeam = WIDTH / 4, kTeams = 128 / kTeam;
    LMM_SHARED(float4, team_sums, kTeams * kTeam);
    LMM_SHARED(float, team_weights, kTeams);
    const int index = blockIdx.x / args.longest_q, row = blockIdx.x % args.longest_q, head = blockIdx.y;
    const int first = args.ranges[2 * index], count = args.ranges[2 * index + 1];
    const Segment segment = decode_segment(args, index);
    if (count < 2 || row >= segment.rows) return;
    const int64_t at = (int64_t{first} * args.longest_q + row) * args.heads + head, stride = int64_t{args.longest_q} * args.heads;

    // Highest logarithm, in each warp for itself.
    float highest = kLowest;
    for (int i = threadIdx.x % 32; i < count; i += 32) highest = fmaxf(highest, args.partial_log[at + i * stride]);
    for (int mate = 16; mate > 0; mate /= 2) highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, mate));

    const int team = threadIdx.x / kTeam, column = threadIdx.x % kTeam;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float weight = 0.0f;
#pragma unroll 4
    for (int i = team; i < count; i += kTeams) {
        const float share = exp2_fast(args.partial_log[at + i * stride] - highest);
        const float4 value = reinterpret_cast<const float4*>(args.partial + (at + i * stride) * WIDTH)[column];
        weight += share;
        sum = make_float4(fmaf(share, value.x, sum.x), fmaf(share, value.y, sum.y), fmaf(share, value.z, sum.z), fmaf(share, value.w, sum.w));
    }
    team_sums[threadIdx.x] = sum;
    if (column == 0) team_weights[team] = weight;
    __syncthreads();
    if (team != 0) return;
    for (int other = 1; other < kTeams; ++other) {
        const float4 more = team_sums[other * kTeam + column];
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
        weight += team_weights[other];
    }
    const float inverse = weight > 0.0f ? 1.0f / weight : 0.0f;
    const int64_t packed = segment.first_row + row;
    uint2* const to = reinterpret_cast<uint2*>(static_cast<T*>(args.out) + (packed * args.heads + head) * WIDTH);
    to[column] = make_uint2(pack2<T>(sum.x * inverse, sum.y * inverse), pack2<T>(sum.z * inverse, sum.w * inverse));
    if (column == 0) args.lse[head * args.rows_q + packed] = weight > 0.0f ? (highest + log2_fast(weight)) * kLn2 : -INFINITY;
}

}  // namespace lmm
