// Launcher of attention of few rows against many keys: picks the tile, launches the parts, and where segments may be split adds them.

#include "decode.cuh"

#include "../common/launch.cuh"

namespace lmm {
namespace {

int decode_refusal(const LmmAttentionDecodeArgs& args) {
    const bool paged = args.page_table != nullptr, split = args.most_parts > 1;
    if (args.dtype != LMM_BFLOAT16 && args.dtype != LMM_FLOAT16) return LMM_BAD_DTYPE;
    if (args.head_dim != 64 && args.head_dim != 128 && args.head_dim != 256) return LMM_BAD_HEAD_DIM;
    if (args.kv_heads <= 0 || args.heads % args.kv_heads != 0) return LMM_BAD_HEADS;
    if (args.rows_q < 0 || args.segments < 0 || args.heads > 65535 || args.longest_q < 1 || args.window < 0 || args.goal < 1 || args.least_steps < 1 || args.most_parts < 1) return LMM_BAD_SIZE;
    if (!(args.scale > 0.0f)) return LMM_UNSUPPORTED;
    if (paged && (args.page_rows <= 0 || args.page_rows % kStepKeys != 0)) return LMM_BAD_PAGE_SIZE;
    if (!args.q || !args.out || !args.lse || !(paged ? args.lengths : args.cu_k)) return LMM_NULL_POINTER;
    if (args.parts < args.segments || (split && (!args.partial || !args.partial_log || !args.ranges))) return LMM_SMALL_WORKSPACE;
    if (!aligned16(args.q) || !aligned16(args.k) || !aligned16(args.v) || !aligned16(args.out) || !aligned16(args.partial)) return LMM_MISALIGNED;
    for (const int64_t stride : {args.q_row, args.q_head, args.k_page, args.k_row, args.k_head, args.v_page, args.v_row, args.v_head}) {
        if (stride % kChunkElements != 0) return LMM_BAD_STRIDE;
    }
    return LMM_OK;
}

template <class Tile>
cudaError_t launch_parts(const LmmAttentionDecodeArgs& args, cudaStream_t stream) {
    const int tiles = args.kv_heads * ceil_div(args.longest_q * (args.heads / args.kv_heads), Tile::kRows);
    const int64_t grid = int64_t{args.parts} * tiles + (args.cu_q != nullptr ? args.kv_heads : 0);
    if (grid > INT32_MAX) return cudaErrorInvalidConfiguration;
    cudaError_t error = cudaSuccess;
    if (grid > 0) {
        LMM_LAUNCH(error, (attention_decode_kernel<Tile>), dim3(static_cast<unsigned>(grid)), dim3(Tile::kThreads), Tile::kSharedBytes, stream, args);
    }
    return error;
}

template <class T, int WIDTH>
int launch_decode(const LmmAttentionDecodeArgs& args, cudaStream_t stream) {
    // Two atoms of rows leave room in the registers up to a head dim of 128.
    const bool tall = WIDTH <= 128 && args.longest_q * (args.heads / args.kv_heads) > kAtom;
    cudaError_t error = tall ? launch_parts<DecodeTile<T, WIDTH, WIDTH <= 128 ? 2 : 1>>(args, stream) : launch_parts<DecodeTile<T, WIDTH, 1>>(args, stream);
    if (error != cudaSuccess || args.most_parts == 1 || args.segments == 0) return error;
    const dim3 grid(static_cast<unsigned>(args.segments * args.longest_q), static_cast<unsigned>(args.heads));
    LMM_LAUNCH(error, (attention_combine_kernel<T, WIDTH>), grid, dim3(128), 0, stream, args);
    return error;
}

template <class T>
int launch_width(const LmmAttentionDecodeArgs& args, cudaStream_t stream) {
    if (args.head_dim == 64) return launch_decode<T, 64>(args, stream);
    if (args.head_dim == 128) return launch_decode<T, 128>(args, stream);
    return launch_decode<T, 256>(args, stream);
}

}  // namespace
}  // namespace lmm

extern "C" int lmm_attention_decode(const LmmAttentionDecodeArgs* args, cudaStream_t stream) {
    if (args->rows_q == 0 || args->heads == 0) return LMM_OK;
    if (const int problem = lmm::decode_refusal(*args); problem != LMM_OK) return problem;
    lmm::DeviceGuard guard(args->device);
    if (guard.error() != cudaSuccess) return guard.error();
    return args->dtype == LMM_BFLOAT16 ? lmm::launch_width<__nv_bfloat16>(*args, stream) : lmm::launch_width<__half>(*args, stream);
}
