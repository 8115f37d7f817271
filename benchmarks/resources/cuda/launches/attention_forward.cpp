// Attention, forward: CLIP's images of 577 rows and 4096 rows of a decoder, both types, every mask.
#include "attention/attention.h"
#include "case.h"
#include "common/launch.cuh"

using recorded::anywhere;

CASE("attention, forward") {
    for (int dtype : {LMM_BFLOAT16, LMM_FLOAT16}) {
        for (int width : {64, 128}) {
            for (int mask : {lmm::kFull, lmm::kCausal, lmm::kKvEnd}) {
                LmmAttentionForwardArgs args{};
                args.q = args.k = args.v = args.out = anywhere;
                args.lse = anywhere;
                args.cu_q = args.cu_k = args.kv_end = anywhere;
                args.segments = 16, args.longest_q = width == 64 ? 577 : 4096, args.even = 1;
                args.rows_q = static_cast<int64_t>(args.segments) * args.longest_q;
                args.heads = args.kv_heads = 16, args.head_dim = width;
                args.q_head = args.k_head = args.v_head = width;
                args.q_row = args.k_row = args.v_row = 3 * args.heads * width;
                args.mask = mask, args.dtype = dtype, args.scale = 0.125f;
                if (int code = lmm_attention_forward(&args, nullptr); code != 0) return code;
            }
        }
    }
    return 0;
}
