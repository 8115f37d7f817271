// First kernel of the backward: what the second wants to know of each row, and a clean slate for its turns.
//
//   log = -lse log2(e)      delta = rowsum(dO O) - dlse      end = one past the last key the row sees      dq = 0 where it sees none
//
// Rows of a block that don't exist get log = -inf and end = 0, so that the second kernel needs no care for them. The mask is asked here and nowhere else.
//
// Bytes: reads 2 T_q N E 2 + 4 T_q N, writes 8 T_q N (and zeros to dq where there is nothing to see). Floor: bytes / bandwidth.
#pragma once

#include "attention/backward_tile.cuh"
#include "attention/softmax.cuh"
#include "common/ptx.cuh"

namespace lmm {

constexpr int kPrepareThreads = 128;

template <class T>
__device__ float dot_of_chunks(uint4 a, uint4 b) {
    const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 x = unpack2<T>(left[i]), y = unpack2<T>(right[i]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    }
    return sum;
}

// Ends of the block's rows, their extremes over groups of 16 and over all; a thread a row.
template <class Tile>
__device__ void note_ends(const BackwardWorkspace& work, int slot, int end) {
    LMM_SHARED(int2, found, Tile::kRows / 32);
    int row = threadIdx.x, lane = row % 32;
    Ends ends{end, end};
    for (int mate = 1; mate < 32; mate *= 2) {
        if (mate == kAtom && lane % kAtom == 0 && row < Tile::kRows) work.group_ends[static_cast<int64_t>(slot) * Tile::kGroups + row / kAtom] = ends.greatest;
        ends.least = min(ends.least, __shfl_xor_sync(0xffffffff, ends.least, mate));
        ends.greatest = max(ends.greatest, __shfl_xor_sync(0xffffffff, ends.greatest, mate));
    }
    if (row < Tile::kRows) {
        work.row_ends[static_cast<int64_t>(slot) * Tile::kRows + row] = end;
        if (lane == 0) found[row / 32] = make_int2(ends.least, ends.greatest);
    }
    __syncthreads();  // every warp's extremes are there
    if (row != 0) return;
    int2 all = found[0];
    for (int warp = 1; warp < Tile::kRows / 32; ++warp) all = make_int2(min(all.x, found[warp].x), max(all.y, found[warp].y));
    work.extremes[slot] = all;
}

// A CTA for each slot of rows and each head.
template <class T, class Tile>
__global__ void __launch_bounds__(kPrepareThreads) attention_backward_prepare(const __grid_constant__ BackwardCall call) {
    constexpr int kLanes = Tile::Rows::kChunks;  // that share a row
    constexpr int kPassRows = kPrepareThreads / kLanes;
    const LmmAttentionBackwardArgs& args = call.args;
    int slot = blockIdx.x, head = blockIdx.y;
    if (threadIdx.x < Tile::kRoleWarps) call.work.turns[(static_cast<int64_t>(head) * call.slots + slot) * Tile::kRoleWarps + threadIdx.x] = 0;
    if (slot == 0 && head == 0 && threadIdx.x == 0) *call.work.ticket = 0;

    // Which rows. A slot that no segment has a block for is never looked at again.
    int segment = segment_of<Tile::kRows>(slot, args.cu_q, args.segments);
    bool slack = segment == args.segments;
    RowEnds ends{args.mask, {}, nullptr};
    Segment& own = ends.segment;
    own.first_row = args.cu_q[segment];
    own.rows = (slack ? static_cast<int>(args.rows_q) : args.cu_q[segment + 1]) - own.first_row;
    own.first_key = args.cu_k[segment];
    own.keys = slack ? 0 : args.cu_k[segment + 1] - own.first_key;
    if (!slack && args.mask == kKvEnd) ends.packed_ends = args.kv_end + own.first_row;
    if (slack) ends.mask = kFull;  // of no keys
    int first = (slot - first_slot(own.first_row, segment, Tile::kRows)) * Tile::kRows;
    if (first >= own.rows) return;
    if (head == 0) note_ends<Tile>(call.work, slot, ends.at(first + threadIdx.x));

    // The sums. All loads are on their way before the first is waited for.
    int chunk = threadIdx.x % kLanes, own_row = threadIdx.x / kLanes;
    const T* out = static_cast<const T*>(args.out) + static_cast<int64_t>(head) * Tile::kWidth + chunk * kChunkElements;
    const T* grad = static_cast<const T*>(args.grad) + head * args.grad_head + chunk * kChunkElements;
    float sums[Tile::kRows / kPassRows];
#pragma unroll
    for (int pass = 0; pass < Tile::kRows / kPassRows; ++pass) {
        int row = first + pass * kPassRows + own_row;
        int64_t packed = own.first_row + row;
        sums[pass] = 0.0f;
        if (row < own.rows && !slack) {
            uint4 a = load_stream_16(out + packed * args.heads * Tile::kWidth), b = load_stream_16(grad + packed * args.grad_row);
            sums[pass] = dot_of_chunks<T>(a, b);
        }
    }
#pragma unroll
    for (int pass = 0; pass < Tile::kRows / kPassRows; ++pass) {
        int row = first + pass * kPassRows + own_row;
        int64_t packed = own.first_row + row;
        float sum = sums[pass];
        for (int mate = 1; mate < kLanes; mate *= 2) sum += __shfl_xor_sync(0xffffffff, sum, mate);
        bool sees = ends.at(row) > 0;
        if (row < own.rows && !sees) {
            T* dq = static_cast<T*>(args.dq) + (packed * args.heads + head) * Tile::kWidth;
            store_stream_16(dq + chunk * kChunkElements, make_uint4(0, 0, 0, 0));
        }
        if (chunk != 0) continue;
        float log = -INFINITY;
        if (sees) {
            log = -args.lse[head * args.rows_q + packed] * kLog2E;
            if (args.grad_lse != nullptr) sum -= args.grad_lse[head * args.grad_lse_head + packed * args.grad_lse_row];
        }
        int64_t at = (static_cast<int64_t>(head) * call.slots + slot) * Tile::kRows + pass * kPassRows + own_row;
        call.work.logs[at] = log;
        call.work.deltas[at] = sees ? sum : 0.0f;
    }
}

}  // namespace lmm
