// Instances and launch of the attention backward.
//
// Tiles, by head dim; registers, spills and SASS are in csrc/resources.json. Not measured on a GPU.
//   64 and 128   64 rows x 128 keys, 8 warps: one CTA of an A100's multiprocessor, by registers
// At 64, blocks of 128 rows move a tenth less between shared memory and tensor cores (80% of the time that these multiply for, not 90%), but hold 64 registers
// of scores more: 1564 bytes of spills a thread (nvcc 13.0, sm_80), 17 accesses to them in the loop without a mask and 653 in all loops. Of 64 rows none spills.
// Whether a GPU would rather have the spills is the first thing to try on one.
#include "attention/backward.cuh"
#include "attention/backward_prepare.cuh"
#include "common/launch.cuh"

namespace lmm {
namespace {

using Tile64 = BackwardTile<64>;
using Tile128 = BackwardTile<128>;

int refusal(const LmmAttentionBackwardArgs& args) {
    if (args.dtype != LMM_BFLOAT16 && args.dtype != LMM_FLOAT16) return LMM_BAD_DTYPE;
    if (args.head_dim != Tile64::kWidth && args.head_dim != Tile128::kWidth) return LMM_BAD_HEAD_DIM;
    if (args.segments < 0 || args.heads < 0 || args.heads > 65535) return LMM_BAD_SIZE;
    for (int64_t rows : {args.rows_q, args.rows_k}) {
        if (rows < 0 || rows > INT32_MAX - Tile64::kRows) return LMM_BAD_SIZE;
    }
    if (args.kv_heads < 0 || (args.kv_heads == 0 ? args.heads != 0 : args.heads % args.kv_heads != 0)) return LMM_BAD_HEADS;
    if (args.mask < kFull || args.mask > kKvEnd || !(args.scale > 0.0f)) return LMM_UNSUPPORTED;
    if (args.mask == kKvEnd && args.kv_end == nullptr && args.rows_q > 0) return LMM_NULL_POINTER;
    const bool any_q = args.rows_q > 0 && args.heads > 0, any_k = args.rows_k > 0 && args.heads > 0;
    if ((any_q || any_k) && (!args.cu_q || !args.cu_k)) return LMM_NULL_POINTER;
    if (any_k && (!args.k || !args.v || !args.dk || !args.dv)) return LMM_NULL_POINTER;
    if (any_q && (!args.q || !args.out || !args.grad || !args.lse || !args.dq)) return LMM_NULL_POINTER;
    for (int64_t stride : {args.q_row, args.q_head, args.k_row, args.k_head, args.v_row, args.v_head, args.grad_row, args.grad_head}) {
        if (stride % kChunkElements != 0) return LMM_BAD_STRIDE;
    }
    for (const void* pointer : {args.q, args.k, args.v, args.out, args.grad, static_cast<const void*>(args.dq), static_cast<const void*>(args.dk),
                                static_cast<const void*>(args.dv), static_cast<const void*>(args.workspace)}) {
        if (!aligned16(pointer)) return LMM_MISALIGNED;
    }
    if (args.workspace_bytes < lmm_attention_backward_workspace(args.rows_q, args.segments, args.heads, args.head_dim)) return LMM_SMALL_WORKSPACE;
    return LMM_OK;
}

template <class T, class Tile>
int launch_backward(const LmmAttentionBackwardArgs& args, cudaStream_t stream) {
    BackwardCall call{args, {}, slot_count(args.rows_q, args.segments, Tile::kRows), slot_count(args.rows_k, args.segments, Tile::kKeys)};
    call.work.lay_out<Tile>(static_cast<unsigned char*>(args.workspace), args.rows_q, args.segments, args.heads);
    int64_t tickets = TicketOrder{call.key_slots, args.kv_heads}.count();
    if (tickets > INT32_MAX) return LMM_BAD_SIZE;
    cudaError_t error;
    LMM_LAUNCH(error, (attention_backward_prepare<T, Tile>), dim3(call.slots, args.heads), kPrepareThreads, 0, stream, call);
    if (error != cudaSuccess) return error;
    LMM_LAUNCH(error, (attention_backward<T, Tile>), static_cast<unsigned>(tickets), Tile::kThreads, Tile::kSharedBytes, stream, call);
    return error;
}

template <class T>
int launch_backward(const LmmAttentionBackwardArgs& args, cudaStream_t stream) {
    return args.head_dim == Tile64::kWidth ? launch_backward<T, Tile64>(args, stream) : launch_backward<T, Tile128>(args, stream);
}

}  // namespace
}  // namespace lmm

extern "C" int64_t lmm_attention_backward_workspace(int64_t rows_q, int32_t segments, int32_t heads, int32_t head_dim) {
    lmm::BackwardWorkspace work;
    if (head_dim == lmm::Tile64::kWidth) return work.lay_out<lmm::Tile64>(nullptr, rows_q, segments, heads);
    if (head_dim == lmm::Tile128::kWidth) return work.lay_out<lmm::Tile128>(nullptr, rows_q, segments, heads);
    return 0;
}

extern "C" int32_t lmm_attention_backward_shared(int32_t head_dim) {
    return head_dim == lmm::Tile64::kWidth ? lmm::Tile64::kSharedBytes : head_dim == lmm::Tile128::kWidth ? lmm::Tile128::kSharedBytes : 0;
}

extern "C" int lmm_attention_backward(const LmmAttentionBackwardArgs* args, cudaStream_t stream) {
    if (int code = lmm::refusal(*args); code != LMM_OK) return code;
    if (args->heads == 0 || (args->rows_q == 0 && args->rows_k == 0)) return LMM_OK;
    lmm::DeviceGuard guard(args->device);
    if (guard.error() != cudaSuccess) return guard.error();
    return args->dtype == LMM_BFLOAT16 ? lmm::launch_backward<__nv_bfloat16>(*args, stream) : lmm::launch_backward<__half>(*args, stream);
}
