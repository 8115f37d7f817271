// Arguments of the splice launchers: plain data. Pointers lie on the device, strides count elements, the last dimension has stride 1. Every launcher returns 0
// or a code of common/launch.cuh, allocates nothing and waits for nothing. Widths and strides may be any: rows that start on 16 bytes are moved 16
// bytes at a time, others one element at a time.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"

// out[t] = table[source[t]] * scale, or image row -(source[t] + 1), or zeros where neither exists.
struct LmmSpliceForwardArgs {
    const void* table;      // [vocabulary, width]
    const void* images;     // image row m: row m % rows_per_image of image m / rows_per_image
    const int32_t* source;  // [rows]
    void* out;              // [rows, width], type of the table
    int64_t table_row, image, image_row, out_row;  // strides
    int32_t rows, vocabulary, image_rows, rows_per_image, width;
    int32_t table_type, image_type;  // LmmDtype
    int32_t scaled;                  // 1: text rows are multiplied by scale, rounded to the type of the table first
    float scale;
    int32_t device;
};

// First pass of the backward: gradient of the images, sums of the pieces of frequent ids, first place of each id in the order.
struct LmmSpliceBackwardRowsArgs {
    const void* grad;           // [rows, width] of the packed rows
    const int32_t* source;      // [rows], of the forward
    const int32_t* image_rows;  // [images] packed row of each image row, -1: none
    void* image_grad;           // [images, width] contiguous
    const int32_t* order;       // [tokens] text rows sorted by token id, -1 after the last
    float* partial;             // [ceil(tokens / 64), width]; slots that hold no piece are not written
    int32_t* bounds;            // [ids]
    int64_t grad_row;           // stride
    int32_t rows, width;
    int32_t images;  // 0: no gradient of the images
    int32_t tokens, ids;  // ids is rows of the table and one; both 0: no gradient of the table
    int32_t grad_type, image_type;  // LmmDtype
    int32_t device;
};

// Second pass: every row of the table's gradient is written once (or, adding, those of ids that occur are added to).
struct LmmSpliceBackwardTableArgs {
    const void* grad;
    const int32_t* order;
    const float* partial;
    const int32_t* bounds;  // [vocabulary + 1]
    void* table_grad;       // [vocabulary, width]
    int64_t grad_row, table_row;  // strides
    int32_t vocabulary, width;
    int32_t adding;                 // 1: add to what table_grad holds
    int32_t grad_type, table_type;  // LmmDtype; the table's is the gradient's, or float32
    int32_t scaled;
    float scale;
    int32_t device;
};

extern "C" {

int lmm_splice_forward(const LmmSpliceForwardArgs* args, cudaStream_t stream);
int lmm_splice_backward_rows(const LmmSpliceBackwardRowsArgs* args, cudaStream_t stream);
int lmm_splice_backward_table(const LmmSpliceBackwardTableArgs* args, cudaStream_t stream);

}  // extern "C"
