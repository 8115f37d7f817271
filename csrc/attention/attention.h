// Arguments of the attention launchers: plain data. Pointers lie on the device, strides count elements, the last dimension has stride 1, rows and heads
// start on 16 bytes. Every launcher returns 0 or a code of common/launch.cuh, allocates nothing and waits for nothing.
//
// Shapes: q [T_q, N, E], k and v [T_k, K, E] with N % K == 0 and strides for rows and heads; out [T_q, N, E] contiguous; lse [N, T_q] fp32, natural.
// cu_q, cu_k [segments + 1]: rows of segment s are cu[s] .. cu[s + 1]. Rows of q after the last segment are slack: never read, written as zeros.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"

namespace lmm {

// What bounds a row on the right; the numbers are those of kernels/attention_bounds.py.
enum AttentionMask : int32_t { kFull = 0, kCausal = 1, kKvEnd = 2 };

}  // namespace lmm

struct LmmAttentionForwardArgs {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    float* lse;
    const int32_t* cu_q;
    const int32_t* cu_k;
    const int32_t* kv_end;  // [T_q] packed key one past the last that a row sees; null unless mask is kKvEnd
    const int32_t* tiles;   // [tile_count, 2] (segment, block) from lmm_attention_tiles; null: each CTA looks up its own
    int64_t q_row, q_head;
    int64_t k_row, k_head;
    int64_t v_row, v_head;
    int64_t rows_q;      // T_q
    int32_t tile_count;  // entries of tiles
    int32_t longest_q;   // rows of the longest segment
    int32_t even;        // 1: all segments have longest_q rows and there is no slack
    int32_t segments;
    int32_t heads, kv_heads, head_dim;
    int32_t mask;        // AttentionMask
    int32_t dtype;       // LmmDtype of q, k, v, out
    int32_t device;
    float scale;         // of the scores, above 0
};

struct LmmAttentionBackwardArgs {
    const void* q;
    const void* k;
    const void* v;
    const void* out;         // what the forward returned
    const void* grad;        // of out, with strides
    const float* lse;        // what the forward returned
    const float* grad_lse;   // [N, T_q] of lse, any strides; null: none
    void* dq;                // gradients: contiguous
    void* dk;
    void* dv;
    const int32_t* cu_q;
    const int32_t* cu_k;
    const int32_t* kv_end;   // null unless mask is kKvEnd
    void* workspace;         // on 16 bytes, holds anything
    int64_t workspace_bytes; // at least what lmm_attention_backward_workspace says
    int64_t q_row, q_head;
    int64_t k_row, k_head;
    int64_t v_row, v_head;
    int64_t grad_row, grad_head;
    int64_t grad_lse_row, grad_lse_head;
    int64_t rows_q, rows_k;  // T_q, T_k
    int32_t segments;
    int32_t heads, kv_heads, head_dim;
    int32_t mask;            // AttentionMask
    int32_t dtype;           // LmmDtype of everything but lse and grad_lse
    int32_t device;
    float scale;             // of the scores, above 0
};

extern "C" {

int lmm_attention_forward(const LmmAttentionForwardArgs* args, cudaStream_t stream);

// Tiles of rows of a forward call, longest first, from lengths on the host. Returns their number, at most `capacity` of which are written as pairs
// (segment, block); segment `segments` is the slack. Nothing of it needs a device.
int lmm_attention_tiles(const int32_t* lengths_q, const int32_t* lengths_k, int32_t segments, int64_t rows_q, int32_t mask, int32_t* tiles, int32_t capacity);

// Gradients of q, k and v; two kernels. The same bits on every run.
int lmm_attention_backward(const LmmAttentionBackwardArgs* args, cudaStream_t stream);

// Bytes of workspace that a backward call needs; 0 for a head dim it doesn't take.
int64_t lmm_attention_backward_workspace(int64_t rows_q, int32_t segments, int32_t heads, int32_t head_dim);

// Bytes of shared memory that its CTAs take, which not every device has; 0 for a head dim it doesn't take. Other launches fit every device.
int32_t lmm_attention_backward_shared(int32_t head_dim);

}  // extern "C"
