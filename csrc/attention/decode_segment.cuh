// What a CTA of split decoding works on: a segment, a part of its keys, a tile of its rows with the heads of a group beside each other.
#pragma once

#include "decode.h"
#include "mask.cuh"

namespace lmm {

constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline Segment decode_segment(const LmmAttentionDecodeArgs& args, int index) {
    Segment segment;
    segment.first_row = args.cu_q != nullptr ? args.cu_q[index] : index * args.longest_q;
    segment.rows = args.cu_q != nullptr ? args.cu_q[index + 1] - segment.first_row : args.longest_q;
    segment.first_key = args.page_table != nullptr ? 0 : args.cu_k[index];
    segment.keys = args.page_table != nullptr ? args.lengths[index] : args.cu_k[index + 1] - segment.first_key;
    return segment;
}

__device__ inline int segment_steps(const LmmAttentionDecodeArgs& args, int index) {
    if (index >= args.segments) return 0;
    const Segment segment = decode_segment(args, index);
    return visible_steps(segment.rows, segment.keys, args.window);
}

// Part `index` of the call, for a whole warp; after the last one its segment is `segments`. Every warp divides the keys anew, 32 segments at a time: that
// is a few loads that hit L2, and no launch or copy more.
__device__ inline Part find_part(const LmmAttentionDecodeArgs& args, int index) {
    const Division division{args.goal, args.least_steps, args.most_parts};
    const int lane = threadIdx.x % 32;
    int total = 0;
    for (int segment = lane; segment < args.segments; segment += 32) total += segment_steps(args, segment);
    for (int mate = 16; mate > 0; mate /= 2) total += __shfl_xor_sync(kAllLanes, total, mate);
    const int size = part_steps(total, division);
    int before = 0;
    for (int first = 0; first < args.segments; first += 32) {
        const int steps = segment_steps(args, first + lane);
        const int count = first + lane < args.segments ? part_count(steps, size, division) : 0;
        int upto = count;
        for (int mate = 1; mate < 32; mate *= 2) {
            const int other = __shfl_up_sync(kAllLanes, upto, mate);
            upto += lane >= mate ? other : 0;
        }
        upto += before;
        const unsigned behind = __ballot_sync(kAllLanes, index < upto);
        if (behind != 0) {
            const int found = __ffs(behind) - 1;
            return {first + found, index - __shfl_sync(kAllLanes, upto - count, found), __shfl_sync(kAllLanes, count, found),
                    __shfl_sync(kAllLanes, steps, found)};
        }
        before = __shfl_sync(kAllLanes, upto, 31);
    }
    return {args.segments, 0, 0, 0};
}

// A tile of ROWS packed rows: the heads of a group of one row, then those of the next row, so that keys are read once a group.
struct PackedRows {
    Segment segment;
    int group, kv_head, first;

    __device__ int row(int place) const { return (first + place) / group; }
    __device__ int head(int place) const { return kv_head * group + (first + place) % group; }
    __device__ bool live(int place) const { return row(place) < segment.rows; }

    // The keys low .. high that a row sees; of a row that isn't there, none.
    __device__ int low(int place, int window) const { return window == 0 ? 0 : row(place) + segment.keys - segment.rows - window + 1; }
    __device__ int high(int place, int mask) const { return live(place) ? row_end(mask, row(place), segment, 0) : 0; }
};

}  // namespace lmm
