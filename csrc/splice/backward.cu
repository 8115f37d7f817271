// Splice, backward: the image gradient is a gather, the gradient of the table a sum in a fixed order, without atomics.
//
// Bytes per call (b = bytes of an element, D = width): the image gradient reads and writes images D b. The gradient of the table reads tokens D b and writes
// vocabulary D b, zeros included, each byte once; ids with 128 rows or more write and read D fp32 per 64 of their rows besides. Floor
// (2 images + tokens + vocabulary) D b / bandwidth. Two launches: 1. sums of pieces, first place of each id, image rows; 2. the table.
//
// Deterministic, and each row of the gradient depends on the rows of its own id only: sums.cuh says in which order they are added, pieces.cuh how frequent
// ids are cut. Sums take a warp for 32 columns of 16 bytes: eight rows under way are 4 KiB, and eight sums of a lane's eight columns are 64 registers.

#include "choose.cuh"
#include "pieces.cuh"
#include "splice.h"
#include "sums.cuh"

namespace lmm::splice {
namespace {

constexpr int kTableIds = 4;  // rows of the table of one warp: few enough that frequent neighbours spread, and 2 KiB of zeros where their ids don't occur

template <int N>
constexpr int kSumColumns = kLanes * N;

// CTAs of the first pass, by kind; what takes longest comes first.
template <int N>
struct RowsGrid {
    uint32_t piece_warps, image_warps;
    int64_t pieces, searches, images;  // CTAs

    __host__ __device__ explicit RowsGrid(const LmmSpliceBackwardRowsArgs& args)
        : piece_warps(static_cast<uint32_t>(ceil_div(args.tokens, kPieceRows)) * ceil_div(args.width, kSumColumns<N>)),
          image_warps(static_cast<uint32_t>(args.images) * ceil_div(args.width, kLoads * kSumColumns<N>)),
          pieces(ceil_div(piece_warps, kWarps)),
          searches(ceil_div(args.ids, kThreads)),
          images(ceil_div(image_warps, kWarps)) {}
};

// Sum of the piece that starts in a slot, into the slot's row of the workspace.
template <class G, int N>
__device__ __forceinline__ void sum_piece(const LmmSpliceBackwardRowsArgs& args, uint32_t slot, int column) {
    const Order order{args.source, args.order, args.tokens};
    const int first = static_cast<int>(slot) * kPieceRows;
    if (!order.may_start_piece(first)) return;
    const int32_t bound = order.first_place(order.searched_id(first, threadIdx.x % 4));
    const auto of_lane = [bound](int lane) { return __shfl_sync(0xffffffffu, bound, lane); };
    const int32_t begin_a = of_lane(0), end_a = of_lane(1), begin_b = of_lane(2), end_b = of_lane(3);
    const Piece piece = piece_in_slot(first, begin_a, end_a, begin_b, end_b);
    if (piece.begin == piece.end) return;

    const bool exist = column < args.width;
    float total[N];
    sum_of_rows<G, N>(static_cast<const G*>(args.grad) + column, args.grad_row, exist, args.order, piece.begin, piece.end, total);
    if (exist) store_floats<float, N, true>(args.partial + static_cast<int64_t>(slot) * args.width + column, total);
}

template <class G, class I, int N>
__global__ void __launch_bounds__(kThreads) splice_backward_rows_kernel(const __grid_constant__ LmmSpliceBackwardRowsArgs args) {
    const RowsGrid<N> grid(args);
    int64_t cta = blockIdx.x;

    // 1. Pieces of frequent ids: one warp a slot and 32 accesses of columns.
    if (cta < grid.pieces) {
        const uint32_t warp = warp_of(cta), spans = ceil_div(args.width, kSumColumns<N>);
        if (warp >= grid.piece_warps) return;
        const int lane = threadIdx.x % kLanes;
        sum_piece<G, N>(args, warp / spans, (static_cast<int>(warp % spans) * kLanes + lane) * N);
        return;
    }
    cta -= grid.pieces;

    // 2. First place of each id: one thread an id. All walk down the same tree, whose upper part stays in the L1.
    if (cta < grid.searches) {
        const int id = static_cast<int>(cta) * kThreads + threadIdx.x;
        if (id < args.ids) args.bounds[id] = Order{args.source, args.order, args.tokens}.first_place(id);
        return;
    }
    cta -= grid.searches;

    // 3. Image rows: each goes to one packed row at most, so its gradient is a copy; zeros where it was truncated away.
    using Row = Span<G, N>;
    const uint32_t warp = warp_of(cta), spans = ceil_div(args.width, Row::kColumns);
    if (warp >= grid.image_warps) return;
    const int column = Row::lane_column(static_cast<int>(warp % spans) * Row::kColumns), left = args.width - column;
    const int32_t packed = args.image_rows[warp / spans];
    const bool there = packed >= 0 && packed < args.rows;
    Row span;
    span.load(static_cast<const G*>(args.grad) + packed * args.grad_row + column, there ? left : 0);
    span.store(static_cast<I*>(args.image_grad) + static_cast<int64_t>(warp / spans) * args.width + column, left);
}

// Products and sums are rounded each: fused into one they would differ from a sum that was stored in between.
template <class G, int N>
__device__ __forceinline__ void multiply(float (&total)[N], float scale) {
    const float factor = to_float(from_float<G>(scale));
#pragma unroll
    for (float& value : total) value = __fmul_rn(value, factor);
}

template <int N>
__device__ __forceinline__ void add(float (&total)[N], const float* before) {
    float found[N];
    load_floats(before, found);
#pragma unroll
    for (int c = 0; c < N; ++c) total[c] = __fadd_rn(total[c], found[c]);
}

template <class G, class W, int N>
__global__ void __launch_bounds__(kThreads) splice_backward_table_kernel(const __grid_constant__ LmmSpliceBackwardTableArgs args) {
    // 1. Which rows of the table, which columns, and where the ids' rows lie in the order.
    const int lane = threadIdx.x % kLanes;
    const uint32_t warp = warp_of(blockIdx.x), spans = ceil_div(args.width, kSumColumns<N>);
    const int first = static_cast<int>(warp / spans) * kTableIds;
    if (first >= args.vocabulary) return;
    const int ids = min(kTableIds, args.vocabulary - first);
    const int column = (static_cast<int>(warp % spans) * kLanes + lane) * N;
    const bool exist = column < args.width;
    const int32_t* const bounds = args.bounds + first;
    W* const out = static_cast<W*>(args.table_grad) + first * args.table_row + column;

    // 2. Zeros for the ids that don't occur; adding, they are left alone.
    if (!args.adding) {
        const float zeros[N] = {};
#pragma unroll
        for (int i = 0; i < kTableIds; ++i) {
            const bool absent = i < ids && __ldg(bounds + i) == __ldg(bounds + i + 1);
            if (absent && exist) store_floats<W, N, false>(out + i * args.table_row, zeros);
        }
    }

    // 3. Sums for those that do, one after another: of their rows, or of their pieces if they are frequent.
    const G* const grad = static_cast<const G*>(args.grad) + column;
#pragma unroll 1
    for (int i = 0; i < ids; ++i) {
        const int begin = __ldg(bounds + i), end = __ldg(bounds + i + 1);
        if (begin == end) continue;
        const int pieces = pieces_of(end - begin);
        float total[N];
        if (pieces) {
            const float* const slot = args.partial + static_cast<int64_t>(begin / kPieceRows) * args.width + column;
            sum_of_pieces<N>(slot, args.width, exist, pieces, total);
        } else {
            sum_of_rows<G, N>(grad, args.grad_row, exist, args.order, begin, end, total);
        }
        if (!exist) continue;
        if (args.scaled) multiply<G, N>(total, args.scale);
        if constexpr (std::is_same_v<W, float>) {
            if (args.adding) add<N>(total, out + i * args.table_row);
        }
        store_floats<W, N, false>(out + i * args.table_row, total);
    }
}

template <class G, class I>
int backward_rows(const LmmSpliceBackwardRowsArgs& args, cudaStream_t stream) {
    constexpr int kElements = kWide<G, I>;
    const int64_t width = args.width;
    const bool wide = rows_align<G>(kElements, args.grad, {width, args.grad_row}) && rows_align<I>(kElements, args.image_grad, {}) &&
                      rows_align<float>(4, args.partial, {});
    return with_access<kElements>(wide, [&](auto elements) -> int {
        constexpr int kN = decltype(elements)::value;
        const int64_t spans = ceil_div(args.width, kSumColumns<kN>);
        if (!fits(ctas_of((args.images + static_cast<int64_t>(args.tokens)) * spans))) return LMM_BAD_SIZE;
        const RowsGrid<kN> grid(args);
        const int64_t ctas = grid.pieces + grid.searches + grid.images;
        if (!fits(ctas)) return LMM_BAD_SIZE;
        DeviceGuard guard(args.device);
        cudaError_t error = guard.error();
        if (error == cudaSuccess) LMM_LAUNCH(error, (splice_backward_rows_kernel<G, I, kN>), dim3(ctas), dim3(kThreads), 0, stream, args);
        return error;
    });
}

template <class G, class W>
int backward_table(const LmmSpliceBackwardTableArgs& args, cudaStream_t stream) {
    constexpr int kElements = kWide<G, G>;
    const int64_t width = args.width;
    const bool wide = rows_align<G>(kElements, args.grad, {width, args.grad_row}) && rows_align<float>(4, args.partial, {}) &&
                      rows_align<W>(16 / sizeof(W), args.table_grad, {args.table_row});
    return with_access<kElements>(wide, [&](auto elements) -> int {
        constexpr int kN = decltype(elements)::value;
        const int64_t tiles = ceil_div(args.vocabulary, kTableIds), ctas = ctas_of(tiles * ceil_div(args.width, kSumColumns<kN>));
        if (!fits(ctas)) return LMM_BAD_SIZE;
        DeviceGuard guard(args.device);
        cudaError_t error = guard.error();
        if (error == cudaSuccess) LMM_LAUNCH(error, (splice_backward_table_kernel<G, W, kN>), dim3(ctas), dim3(kThreads), 0, stream, args);
        return error;
    });
}

}  // namespace
}  // namespace lmm::splice

extern "C" int lmm_splice_backward_rows(const LmmSpliceBackwardRowsArgs* args, cudaStream_t stream) {
    using namespace lmm::splice;
    if (args->rows < 0 || args->width < 0 || args->images < 0 || args->tokens < 0 || args->ids < 0) return LMM_BAD_SIZE;
    if (args->width == 0 || (args->images == 0 && args->ids == 0)) return LMM_OK;
    if (args->rows && !args->grad) return LMM_NULL_POINTER;
    if (args->images && (!args->image_rows || !args->image_grad)) return LMM_NULL_POINTER;
    if (args->ids && !args->bounds) return LMM_NULL_POINTER;
    if (args->tokens && (!args->source || !args->order || !args->partial)) return LMM_NULL_POINTER;
    return with_type(args->grad_type, [&](auto grad) {
        return with_type(args->image_type, [&](auto image) { return backward_rows<decltype(grad), decltype(image)>(*args, stream); });
    });
}

extern "C" int lmm_splice_backward_table(const LmmSpliceBackwardTableArgs* args, cudaStream_t stream) {
    using namespace lmm::splice;
    if (args->vocabulary < 0 || args->width < 0) return LMM_BAD_SIZE;
    if (args->vocabulary == 0 || args->width == 0) return LMM_OK;
    if (!args->bounds || !args->table_grad) return LMM_NULL_POINTER;
    if (args->table_type != args->grad_type && args->table_type != LMM_FLOAT32) return LMM_BAD_DTYPE;
    if (args->adding && args->table_type != LMM_FLOAT32) return LMM_BAD_DTYPE;
    return with_type(args->grad_type, [&](auto grad) {
        using G = decltype(grad);
        return args->table_type == LMM_FLOAT32 ? backward_table<G, float>(*args, stream) : backward_table<G, G>(*args, stream);
    });
}
