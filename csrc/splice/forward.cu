// Splice, forward: each packed row is copied once from where the plan says it comes, the embedding table or the image rows.
//
// Bytes per call (b = bytes of an element, D = width): reads rows D b + 4 rows, writes rows D b; floor 2 rows D b / bandwidth. Nothing is zeroed first, rows
// that were truncated away are not read, and the image rows may lie apart (a view without the class token). Text repeats: its rows come from the L2 often.
//
// One warp a span of a row; which table it reads is the same for the whole warp, so the branches below diverge nowhere.

#include "choose.cuh"
#include "splice.h"

namespace lmm::splice {
namespace {

template <class T, class I, int N>
__global__ void __launch_bounds__(kThreads) splice_forward_kernel(const __grid_constant__ LmmSpliceForwardArgs args) {
    using Text = Span<T, N>;
    using Image = Span<I, N>;

    // 1. Which span of which row, and where the row comes from.
    const uint32_t spans = ceil_div(args.width, Text::kColumns);
    const uint32_t warp = warp_of(blockIdx.x), row = warp / spans;
    if (row >= static_cast<uint32_t>(args.rows)) return;
    const int column = Text::lane_column(static_cast<int>(warp % spans) * Text::kColumns), left = args.width - column;
    T* const out = static_cast<T*>(args.out) + static_cast<int64_t>(row) * args.out_row + column;
    const int32_t chosen = args.source[row];

    // 2. Text: an id outside the table gives zeros, not a fault.
    if (chosen >= 0) {
        Text span;
        span.load(static_cast<const T*>(args.table) + chosen * args.table_row + column, chosen < args.vocabulary ? left : 0);
        if (args.scaled) span.multiply(to_float(from_float<T>(args.scale)));
        span.store(out, left);
        return;
    }

    // 3. Image: -1 is the first row; slack rows and rows that no image has are zeros too.
    const int32_t place = -(chosen + 1);
    const int32_t image = place / args.rows_per_image, image_row = place % args.rows_per_image;
    Image span;
    span.load(static_cast<const I*>(args.images) + image * args.image + image_row * args.image_row + column, place < args.image_rows ? left : 0);
    span.store(out, left);
}

template <class T, class I>
int forward(const LmmSpliceForwardArgs& args, cudaStream_t stream) {
    constexpr int kElements = kWide<T, I>;
    const int64_t width = args.width;
    const bool wide = rows_align<T>(kElements, args.table, {width, args.table_row}) && rows_align<T>(kElements, args.out, {args.out_row}) &&
                      rows_align<I>(kElements, args.images, {args.image, args.image_row});
    return with_access<kElements>(wide, [&](auto elements) -> int {
        constexpr int kN = decltype(elements)::value;
        const int64_t ctas = ctas_of(args.rows * static_cast<int64_t>(ceil_div(args.width, Span<T, kN>::kColumns)));
        if (!fits(ctas)) return LMM_BAD_SIZE;
        DeviceGuard guard(args.device);
        cudaError_t error = guard.error();
        if (error == cudaSuccess) LMM_LAUNCH(error, (splice_forward_kernel<T, I, kN>), dim3(ctas), dim3(kThreads), 0, stream, args);
        return error;
    });
}

}  // namespace
}  // namespace lmm::splice

extern "C" int lmm_splice_forward(const LmmSpliceForwardArgs* args, cudaStream_t stream) {
    using namespace lmm::splice;
    if (args->rows < 0 || args->width < 0 || args->vocabulary < 0 || args->image_rows < 0) return LMM_BAD_SIZE;
    if (args->rows_per_image < 1) return LMM_BAD_SIZE;
    if (args->rows == 0 || args->width == 0) return LMM_OK;
    if (!args->source || !args->out || (args->vocabulary && !args->table) || (args->image_rows && !args->images)) return LMM_NULL_POINTER;
    return with_type(args->table_type, [&](auto table) {
        return with_type(args->image_type, [&](auto image) { return forward<decltype(table), decltype(image)>(*args, stream); });
    });
}
