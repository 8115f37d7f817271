// How the keys of all segments are divided among CTAs when few rows read many keys: arithmetic of lengths, tested on the host.
//
// Keys are counted in steps of 16, what one warp takes at a time. A segment with `steps` visible steps has `part_count` parts, and all parts of a call
// are about equally long: a long segment has many, a short one few. How long follows from the lengths, which the device knows, and from a goal that the
// host derives from shapes; so a captured launch divides the work evenly however the cache has grown. Parts stand in the order of the segments, and
// there are always fewer than goal + segments of them, whatever the lengths: as size >= sum of steps / goal,
//
//   sum of max(1, ceil(steps / size)) < sum of (steps / size + 1) <= goal + segments        (without any keys: segments)
#pragma once

#include "tile.cuh"

namespace lmm {

constexpr int kStepKeys = kAtom;

// What the host decides about the division of a call.
struct Division {
    int32_t goal;         // parts that all segments should have together, above 0
    int32_t least_steps;  // a part has at least so many, above 0
    int32_t most_parts;   // of a segment; 1: nothing is split
};

// First key that any of `rows` rows with their last key at `keys` - 1 sees with a window (0 = none).
constexpr __host__ __device__ int first_visible(int rows, int keys, int window) {
    return window == 0 || keys - rows - window + 1 < 0 ? 0 : keys - rows - window + 1;
}

// Steps that a segment reads: from the one in which its first visible key lies to its end.
constexpr __host__ __device__ int visible_steps(int rows, int keys, int window) {
    return rows == 0 || keys == 0 ? 0 : ceil_div(keys, kStepKeys) - first_visible(rows, keys, window) / kStepKeys;
}

// Steps of a part, given the visible steps of all segments together.
constexpr __host__ __device__ int part_steps(int total_steps, const Division& division) {
    const int even = ceil_div(total_steps, division.goal);
    return even > division.least_steps ? even : division.least_steps;
}

// Parts of a segment; one without keys has one, which writes zeros.
constexpr __host__ __device__ int part_count(int steps, int size, const Division& division) {
    const int count = steps <= size ? 1 : ceil_div(steps, size);
    return count < division.most_parts ? count : division.most_parts;
}

// A part of a segment.
struct Part {
    int segment;
    int index;  // within the segment
    int count;  // parts of the segment
    int steps;  // visible steps of the segment
};

// Where a part begins, in steps from the segment's first visible one; the end of a part is the begin of the next.
constexpr __host__ __device__ int part_begin(const Part& part, int index) {
    const int begin = index * ceil_div(part.steps, part.count);
    return begin < part.steps ? begin : part.steps;
}

}  // namespace lmm
