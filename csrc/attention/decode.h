// Arguments of attention of few rows against many keys: plain data, under the contract of attention.h. Keys and values lie packed or in pages.
//
// Packed: k and v [T_k, K, E], boundaries cu_q and cu_k. Paged: k and v [pages, page_rows, K, E], `longest_q` rows a segment, key j of segment s in
// row j % page_rows of page page_table[s, j / page_rows], `lengths` keys. Which it is, is said by page_table being null or not.
#pragma once

#include "attention.h"
#include "decode_parts.cuh"

struct LmmAttentionDecodeArgs {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    float* lse;
    const int32_t* cu_q;        // [segments + 1]; null: longest_q rows each
    const int32_t* cu_k;        // [segments + 1] of packed keys
    const int32_t* page_table;  // [segments, table_row]
    const int32_t* lengths;     // [segments]
    float* partial;             // [parts, longest_q, N, E]: results of the parts of segments that have several
    float* partial_log;         // [parts, longest_q, N]: logarithms to base 2 of their sums of weights
    int32_t* ranges;            // [segments, 2]: first part of a segment and how many it has. These three are null when most_parts is 1
    int64_t q_row, q_head;
    int64_t k_page, k_row, k_head;
    int64_t v_page, v_row, v_head;
    int64_t table_row;
    int64_t rows_q;     // T_q
    int32_t longest_q;  // rows of the longest segment, at least 1
    int32_t segments;
    int32_t heads, kv_heads, head_dim;
    int32_t page_rows;  // a multiple of 16
    int32_t parts;      // there is room for: at least as many as the division can make
    int32_t goal, least_steps, most_parts;  // lmm::Division
    int32_t causal;     // 1: a row sees keys up to its own place
    int32_t window;     // most keys up to its own place that a row sees; 0 = all
    int32_t dtype;      // LmmDtype of q, k, v, out
    int32_t device;
    float scale;    // of the scores, above 0
    float softcap;  // scores become softcap tanh(score / softcap); 0 = as they are
};

extern "C" {

// Two launches where segments may be split, one where not. Lengths, boundaries and page table are read on the device only.
int lmm_attention_decode(const LmmAttentionDecodeArgs* args, cudaStream_t stream);

}  // extern "C"
