// Keys and values on their way from global memory to one warp: a ring of steps of 16 keys, 16 bytes a copy.
//
// Every warp has a ring of its own and waits for nobody else: no barrier of the CTA stands in the loop, and while a warp computes, all but one of its steps
// are under way. Rows outside the keys that the part may see are zeros and are not read, whatever lies there.
#pragma once

#include "../common/ptx.cuh"
#include "decode_segment.cuh"

namespace lmm {

// What one CTA of split decoding holds. Its warps share the rows and take steps of keys in turn.
template <class Element, int WIDTH, int ATOMS>
struct DecodeTile {
    using T = Element;
    static constexpr int kWidth = WIDTH;
    static constexpr int kAtoms = ATOMS;
    static constexpr int kRows = ATOMS * kAtom;
    static constexpr int kSteps = WIDTH / kAtom;  // products of 16 over the head dim
    using Rows = SharedTile<kRows, WIDTH>;
    using Keys = SharedTile<kStepKeys, WIDTH>;

    // 64 KiB of keys and values for every head dim: two CTAs an SM of an A100, each with half of its rings or more under way.
    static constexpr int kWarps = WIDTH > 128 ? 2 : 4;
    static constexpr int kThreads = kWarps * 32;
    static constexpr int kStepBytes = 2 * Keys::kBytes;
    static constexpr int kStages = 64 * 1024 / kWarps / kStepBytes;
    static_assert(kStages >= 2 && (kStages & (kStages - 1)) == 0, "a ring whose place is a mask");
    static constexpr int kRingsAt = Rows::kBytes;

    // Afterwards, in the same place: what each warp has found. The 8 floats between rows keep a quad's stores of 8 rows in different banks.
    static constexpr int kSumsRow = WIDTH + 8;
    static constexpr int kTopsAt = kWarps * kRows * kSumsRow * 4;
    static constexpr int kWeightsAt = kTopsAt + kWarps * kRows * 4;
    static constexpr int kFoundBytes = kWeightsAt + kWarps * kRows * 4;
    static constexpr int kLoopBytes = kRingsAt + kWarps * kStages * kStepBytes;
    static constexpr int kSharedBytes = kLoopBytes > kFoundBytes ? kLoopBytes : kFoundBytes;
    static_assert(kSharedBytes <= kSharedBytesAnywhere, "a CTA of any GPU: nobody asks whether it fits");

    static constexpr __host__ __device__ int atom_row(int, int atom) { return atom * kAtom; }
};

template <class Tile>
struct KeyStream {
    using T = typename Tile::T;
    using Keys = typename Tile::Keys;
    static constexpr int kRowsAtOnce = 32 / Keys::kChunks;

    const LmmAttentionDecodeArgs& args;
    const int32_t* table;  // of the segment; null: keys are packed
    int64_t first_row;     // packed row of key 0
    int key, low, end;     // the next step's first key; keys outside low .. end are not read
    int page;              // of that step, loaded one step ahead
    const T *k, *v;        // this lane's chunk of the kv head
    int row, chunk;        // this lane's first row of a step, and its chunk

    __device__ KeyStream(const LmmAttentionDecodeArgs& args, int segment, int kv_head, int64_t first_row, int key, int low, int end)
        : args(args), table(args.page_table), first_row(first_row), key(key), low(low), end(end) {
        if (table != nullptr) table += segment * args.table_row;
        row = threadIdx.x % 32 / Keys::kChunks;
        chunk = threadIdx.x % Keys::kChunks;
        k = static_cast<const T*>(args.k) + kv_head * args.k_head + chunk * kChunkElements;
        v = static_cast<const T*>(args.v) + kv_head * args.v_head + chunk * kChunkElements;
        look_up_page();
    }

    __device__ void look_up_page() {
        page = table != nullptr && key < end ? table[key / args.page_rows] : 0;
    }

    // Issue the copies of the next step of this warp, and commit them as a group, which is empty after the last.
    __device__ void issue(unsigned char* shared) {
        if (key < end) {
            const int64_t at = table != nullptr ? key % args.page_rows : first_row + key;
            const T* from_k = k + page * args.k_page + (at + row) * args.k_row;
            const T* from_v = v + page * args.v_page + (at + row) * args.v_row;
#pragma unroll
            for (int first = 0; first < kStepKeys; first += kRowsAtOnce) {
                const bool seen = key + first + row >= low && key + first + row < end;
                const int to = Keys::offset(first + row, chunk);
                cp_async_16(shared + to, from_k + first * args.k_row, seen);
                cp_async_16(shared + Keys::kBytes + to, from_v + first * args.v_row, seen);
            }
        }
        cp_async_commit();
        key += Tile::kWarps * kStepKeys;
        look_up_page();
    }
};

}  // namespace lmm
