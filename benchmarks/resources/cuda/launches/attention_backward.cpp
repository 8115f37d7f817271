// Attention, backward: CLIP's images of 577 rows, packed conversations of a decoder with and without groups of heads, both types, every mask.
#include <cstdint>

#include "attention/attention.h"
#include "case.h"
#include "common/launch.cuh"

using recorded::anywhere;

namespace {

struct Shape {
    int width, heads, kv_heads;
    int segments, longest;
};
constexpr Shape kShapes[] = {{64, 16, 16, 16, 577}, {128, 32, 32, 16, 2048}, {128, 32, 8, 16, 2048}};

int backward(const Shape& shape, int mask, int dtype) {
    LmmAttentionBackwardArgs args{};
    args.q = args.k = args.v = args.out = args.grad = anywhere;
    args.dq = args.dk = args.dv = args.workspace = anywhere;
    args.lse = anywhere;
    args.cu_q = args.cu_k = args.kv_end = anywhere;
    args.rows_q = args.rows_k = static_cast<int64_t>(shape.segments) * shape.longest;
    args.segments = shape.segments, args.heads = shape.heads, args.kv_heads = shape.kv_heads, args.head_dim = shape.width;
    args.q_head = args.k_head = args.v_head = args.grad_head = shape.width;
    args.q_row = args.k_row = args.v_row = (shape.heads + 2 * shape.kv_heads) * shape.width;  // views of one projection
    args.grad_row = shape.heads * shape.width;
    args.workspace_bytes = lmm_attention_backward_workspace(args.rows_q, args.segments, args.heads, args.head_dim);
    args.mask = mask, args.dtype = dtype, args.scale = 0.125f;
    return lmm_attention_backward(&args, nullptr);
}

}  // namespace

CASE("attention, backward") {
    for (const Shape& shape : kShapes) {
        for (int mask : {lmm::kFull, lmm::kCausal, lmm::kKvEnd}) {
            for (int dtype : {LMM_BFLOAT16, LMM_FLOAT16}) {
                if (int code = backward(shape, mask, dtype); code != 0) return code;
            }
        }
    }
    return 0;
}
