// The launchers of csrc without their kernels: each returns 0 at once. What a call then costs is the host's part: Python, pybind11, allocations.
#include "attention/attention.h"
#include "attention/decode.h"
#include "common/launch.cuh"
#include "splice/splice.h"

extern "C" {

int lmm_attention_forward(const LmmAttentionForwardArgs*, cudaStream_t) { return 0; }
int lmm_attention_tiles(const int32_t*, const int32_t*, int32_t, int64_t, int32_t, int32_t*, int32_t) { return 0; }
int lmm_attention_backward(const LmmAttentionBackwardArgs*, cudaStream_t) { return 0; }
int64_t lmm_attention_backward_workspace(int64_t, int32_t, int32_t, int32_t) { return 16; }
int32_t lmm_attention_backward_shared(int32_t) { return 1024; }
int lmm_attention_decode(const LmmAttentionDecodeArgs*, cudaStream_t) { return 0; }
int lmm_splice_forward(const LmmSpliceForwardArgs*, cudaStream_t) { return 0; }
int lmm_splice_backward_rows(const LmmSpliceBackwardRowsArgs*, cudaStream_t) { return 0; }
int lmm_splice_backward_table(const LmmSpliceBackwardTableArgs*, cudaStream_t) { return 0; }

}  // extern "C"
