// Splice: rows of 4096 (moved 16 bytes at a time) and of 4095 (one element at a time), of every type, images without their class token.
#include "case.h"
#include "common/launch.cuh"
#include "splice/splice.h"

using recorded::anywhere;

namespace {

constexpr int kRows = 32768, kImages = 16, kImageRows = 576, kVocabulary = 32000;
constexpr int kTypes[] = {LMM_FLOAT32, LMM_FLOAT16, LMM_BFLOAT16};
constexpr int kWidths[] = {4096, 4095};

// The first code of a launch that is refused, or 0.
template <class Launch>
int for_every_type_and_width(Launch launch) {
    for (int first : kTypes) {
        for (int second : kTypes) {
            for (int width : kWidths) {
                if (int code = launch(first, second, width); code != 0) return code;
            }
        }
    }
    return 0;
}

}  // namespace

CASE("splice, forward") {
    return for_every_type_and_width([](int table, int images, int width) {
        LmmSpliceForwardArgs args{};
        args.table = args.images = args.out = anywhere;
        args.source = anywhere;
        args.table_row = args.image_row = args.out_row = width;
        args.image = static_cast<int64_t>(kImageRows + 1) * width;
        args.rows = kRows, args.vocabulary = kVocabulary, args.image_rows = kImages * kImageRows, args.rows_per_image = kImageRows, args.width = width;
        args.table_type = table, args.image_type = images;
        return lmm_splice_forward(&args, nullptr);
    });
}

CASE("splice, backward of images and pieces") {
    return for_every_type_and_width([](int grad, int images, int width) {
        LmmSpliceBackwardRowsArgs args{};
        args.grad = args.image_grad = anywhere;
        args.source = args.image_rows = args.order = anywhere;
        args.partial = anywhere, args.bounds = anywhere;
        args.grad_row = width;
        args.rows = kRows, args.width = width, args.images = kImages * kImageRows, args.tokens = kRows - args.images, args.ids = kVocabulary + 1;
        args.grad_type = grad, args.image_type = images;
        return lmm_splice_backward_rows(&args, nullptr);
    });
}

CASE("splice, backward of the table") {
    return for_every_type_and_width([](int grad, int table, int width) {
        if (table != grad && table != LMM_FLOAT32) return 0;
        LmmSpliceBackwardTableArgs args{};
        args.grad = args.table_grad = anywhere;
        args.order = args.bounds = anywhere;
        args.partial = anywhere;
        args.grad_row = args.table_row = width;
        args.vocabulary = kVocabulary, args.width = width;
        args.grad_type = grad, args.table_type = table;
        return lmm_splice_backward_table(&args, nullptr);
    });
}
