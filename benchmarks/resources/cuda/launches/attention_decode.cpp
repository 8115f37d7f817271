// Attention of few rows against many keys: one new row a sequence of Vicuna, of Qwen2 (groups of 7) and of Gemma (256 wide), and 16 rows at once; keys in one
// piece and in pages, sequences in parts and whole.
#include <algorithm>
#include <cstdint>

#include "attention/decode.h"
#include "case.h"
#include "common/launch.cuh"

using recorded::anywhere;

namespace {

struct Shape {
    int width, heads, kv_heads;
    int rows;  // of a sequence
};
constexpr Shape kShapes[] = {{128, 32, 32, 1}, {128, 32, 8, 16}, {64, 14, 2, 1}, {64, 14, 2, 16}, {256, 16, 8, 1}, {256, 16, 8, 16}};
constexpr int kSequences = 16, kKeys = 4096, kPageRows = 16;
constexpr int kGoal = 432;  // two CTAs for each of 108 multiprocessors, less than a kv head each

LmmAttentionDecodeArgs arguments(const Shape& shape, int dtype) {
    LmmAttentionDecodeArgs args{};
    args.q = args.k = args.v = args.out = anywhere;
    args.lse = args.partial = args.partial_log = anywhere;
    args.ranges = anywhere;
    args.q_head = shape.width, args.q_row = (shape.heads + 2 * shape.kv_heads) * shape.width;
    args.k_head = args.v_head = shape.width;
    args.k_row = args.v_row = shape.kv_heads * shape.width;
    args.rows_q = kSequences * shape.rows, args.longest_q = shape.rows, args.segments = kSequences;
    args.heads = shape.heads, args.kv_heads = shape.kv_heads, args.head_dim = shape.width;
    args.least_steps = 16, args.causal = 1;
    args.dtype = dtype, args.scale = 0.125f;
    return args;
}

void in_one_piece(LmmAttentionDecodeArgs& args) {
    args.cu_q = args.cu_k = anywhere;
}

void in_pages(LmmAttentionDecodeArgs& args) {
    args.page_table = args.lengths = anywhere;
    args.page_rows = kPageRows, args.table_row = kKeys / kPageRows;
    args.k_page = args.v_page = kPageRows * args.k_row;
}

void in_parts(LmmAttentionDecodeArgs& args) {
    args.goal = std::max(kGoal / args.kv_heads, kSequences), args.parts = args.goal + kSequences - 1, args.most_parts = INT32_MAX;
}

void whole(LmmAttentionDecodeArgs& args) {
    args.goal = 1, args.parts = kSequences, args.most_parts = 1;
}

}  // namespace

CASE("attention, decode") {
    for (const Shape& shape : kShapes) {
        for (int dtype : {LMM_BFLOAT16, LMM_FLOAT16}) {
            for (auto lie : {in_one_piece, in_pages}) {
                for (auto divide : {in_parts, whole}) {
                    LmmAttentionDecodeArgs args = arguments(shape, dtype);
                    lie(args), divide(args);
                    if (int code = lmm_attention_decode(&args, nullptr); code != 0) return code;
                }
            }
        }
    }
    return 0;
}
