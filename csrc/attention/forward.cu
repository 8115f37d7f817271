// Instances and launch of the attention forward.
//
// Tiles, by head dim; registers, spills and SASS of both are in csrc/resources.json. Not measured on a GPU.
//   64   128 x 64, 4 warps: 32 rows a warp halve the shared-memory traffic of 16; 64 keys, not 128: scores of 128 need the registers that hold the rows
//   128  128 x 64, 4 warps: 128 registers of sums and 64 of scores; two CTAs of 64 KiB fit a multiprocessor of an A100
#include "attention/forward.cuh"
#include "common/launch.cuh"

namespace lmm {
namespace {

using Tile64 = AttentionTile<128, 64, 4, 64>;
using Tile128 = AttentionTile<128, 64, 4, 128>;

static_assert(Tile64::kRows == Tile128::kRows && Tile64::kKeys == Tile128::kKeys, "lmm_attention_tiles makes one list for both");

int refusal(const LmmAttentionForwardArgs& args) {
    if (args.dtype != LMM_BFLOAT16 && args.dtype != LMM_FLOAT16) return LMM_BAD_DTYPE;
    if (args.head_dim != Tile64::kWidth && args.head_dim != Tile128::kWidth) return LMM_BAD_HEAD_DIM;
    if (args.rows_q < 0 || args.rows_q > INT32_MAX - Tile64::kRows || args.segments < 0 || args.heads < 0 || args.heads > 65535) return LMM_BAD_SIZE;
    if (args.kv_heads < 0 || (args.kv_heads == 0 ? args.heads != 0 : args.heads % args.kv_heads != 0)) return LMM_BAD_HEADS;
    if (args.mask < kFull || args.mask > kKvEnd || !(args.scale > 0.0f)) return LMM_UNSUPPORTED;
    if (args.mask == kKvEnd && args.kv_end == nullptr && args.rows_q > 0) return LMM_NULL_POINTER;
    if (args.rows_q > 0 && args.heads > 0 && (!args.q || !args.out || !args.lse || !args.cu_q || !args.cu_k)) return LMM_NULL_POINTER;
    for (int64_t stride : {args.q_row, args.q_head, args.k_row, args.k_head, args.v_row, args.v_head}) {
        if (stride % kChunkElements != 0) return LMM_BAD_STRIDE;
    }
    if (!aligned16(args.q) || !aligned16(args.k) || !aligned16(args.v) || !aligned16(args.out)) return LMM_MISALIGNED;
    return LMM_OK;
}

template <class T, class Tile>
int launch_forward(const LmmAttentionForwardArgs& args, cudaStream_t stream) {
    int tiles = args.tiles != nullptr ? args.tile_count : most_tiles(args.rows_q, args.segments, args.longest_q, args.even != 0, Tile::kRows);
    if (tiles == 0) return LMM_OK;
    cudaError_t error;
    LMM_LAUNCH(error, (attention_forward<T, Tile>), dim3(tiles, args.heads), Tile::kThreads, Tile::kSharedBytes, stream, args);
    return error;
}

template <class T>
int launch_forward(const LmmAttentionForwardArgs& args, cudaStream_t stream) {
    return args.head_dim == Tile64::kWidth ? launch_forward<T, Tile64>(args, stream) : launch_forward<T, Tile128>(args, stream);
}

}  // namespace
}  // namespace lmm

extern "C" int lmm_attention_forward(const LmmAttentionForwardArgs* args, cudaStream_t stream) {
    if (int code = lmm::refusal(*args); code != LMM_OK) return code;
    if (args->rows_q == 0 || args->heads == 0) return LMM_OK;
    lmm::DeviceGuard guard(args->device);
    if (guard.error() != cudaSuccess) return guard.error();
    return args->dtype == LMM_BFLOAT16 ? lmm::launch_forward<__nv_bfloat16>(*args, stream) : lmm::launch_forward<__half>(*args, stream);
}

extern "C" int lmm_attention_tiles(
    const int32_t* lengths_q, const int32_t* lengths_k, int32_t segments, int64_t rows_q, int32_t mask, int32_t* tiles, int32_t capacity) {
    auto places = lmm::longest_first(lengths_q, lengths_k, segments, rows_q, mask, lmm::Tile64::kRows, lmm::Tile64::kKeys);
    int count = static_cast<int>(places.size());
    for (int i = 0; i < std::min(count, static_cast<int>(capacity)); ++i) {
        tiles[2 * i] = places[i].segment;
        tiles[2 * i + 1] = places[i].block;
    }
    return count;
}
