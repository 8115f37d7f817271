// lmmblocks._C: the launchers as Python functions, and how they were built. Importing it needs no driver and no GPU.
//
// Each family of kernels has one section. A launcher is one add_launcher (launcher.h) with the fields of its argument struct.

#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "attention/attention.h"
#include "attention/decode.h"
#include "common/launch.cuh"
#include "launcher.h"
#include "splice/splice.h"

#ifndef LMM_ARCHS  // setup.py says what it compiled for; the emulator compiles for nothing
#define LMM_ARCHS ""
#define LMM_COMPILERS "g++ " __VERSION__
#define LMM_VERSION ""
#endif

namespace {

namespace py = pybind11;

// What the doctor and the gate want to know. No call in here needs a driver: its version is 0 where there is none.
py::dict facts() {
    py::dict found;
    found["version"] = LMM_VERSION;
    found["archs"] = LMM_ARCHS;  // "sm_80;sm_90;compute_80"
    found["compilers"] = LMM_COMPILERS;
#ifdef LMM_SIMT
    found["emulated"] = true;
    found["cuda"] = 0;
    found["driver"] = 0;
#else
    int driver = 0;
    cudaDriverGetVersion(&driver);
    found["emulated"] = false;
    found["cuda"] = CUDART_VERSION;  // 13000 is 13.0
    found["driver"] = driver;        // the newest CUDA that it serves
#endif
    return found;
}

// (segment, block) of every tile of rows of an attention forward, flat, longest first.
std::vector<int32_t> attention_tiles(const std::vector<int32_t>& lengths_q, const std::vector<int32_t>& lengths_k, int64_t rows_q, int32_t mask) {
    int32_t segments = static_cast<int32_t>(lengths_q.size());
    auto fill = [&](int32_t* tiles, int32_t capacity) {
        return lmm_attention_tiles(lengths_q.data(), lengths_k.data(), segments, rows_q, mask, tiles, capacity);
    };
    std::vector<int32_t> tiles(2 * fill(nullptr, 0));
    fill(tiles.data(), static_cast<int32_t>(tiles.size() / 2));
    return tiles;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "CUDA kernels of lmmblocks: each launcher takes pointers as integers and returns an error code, 0 for success";
    module.def("facts", &facts, "Versions and architectures this was built with, and the CUDA version of the driver (0: no driver)");
    module.def("error_message", &lmm::error_message, py::arg("code"), "What a code means that a launcher returned");

    // splice/
    lmm::add_launcher(
        module, "splice_forward", lmm_splice_forward,
        FIELD(LmmSpliceForwardArgs, table), FIELD(LmmSpliceForwardArgs, images), FIELD(LmmSpliceForwardArgs, source),
        FIELD(LmmSpliceForwardArgs, out), FIELD(LmmSpliceForwardArgs, table_row), FIELD(LmmSpliceForwardArgs, image),
        FIELD(LmmSpliceForwardArgs, image_row), FIELD(LmmSpliceForwardArgs, out_row), FIELD(LmmSpliceForwardArgs, rows),
        FIELD(LmmSpliceForwardArgs, vocabulary), FIELD(LmmSpliceForwardArgs, image_rows),
        FIELD(LmmSpliceForwardArgs, rows_per_image), FIELD(LmmSpliceForwardArgs, width),
        FIELD(LmmSpliceForwardArgs, table_type), FIELD(LmmSpliceForwardArgs, image_type), FIELD(LmmSpliceForwardArgs, scaled),
        FIELD(LmmSpliceForwardArgs, scale), FIELD(LmmSpliceForwardArgs, device));
    lmm::add_launcher(
        module, "splice_backward_rows", lmm_splice_backward_rows,
        FIELD(LmmSpliceBackwardRowsArgs, grad), FIELD(LmmSpliceBackwardRowsArgs, source),
        FIELD(LmmSpliceBackwardRowsArgs, image_rows), FIELD(LmmSpliceBackwardRowsArgs, image_grad),
        FIELD(LmmSpliceBackwardRowsArgs, order), FIELD(LmmSpliceBackwardRowsArgs, partial),
        FIELD(LmmSpliceBackwardRowsArgs, bounds), FIELD(LmmSpliceBackwardRowsArgs, grad_row),
        FIELD(LmmSpliceBackwardRowsArgs, rows), FIELD(LmmSpliceBackwardRowsArgs, width),
        FIELD(LmmSpliceBackwardRowsArgs, images), FIELD(LmmSpliceBackwardRowsArgs, tokens),
        FIELD(LmmSpliceBackwardRowsArgs, ids), FIELD(LmmSpliceBackwardRowsArgs, grad_type),
        FIELD(LmmSpliceBackwardRowsArgs, image_type), FIELD(LmmSpliceBackwardRowsArgs, device));
    lmm::add_launcher(
        module, "splice_backward_table", lmm_splice_backward_table,
        FIELD(LmmSpliceBackwardTableArgs, grad), FIELD(LmmSpliceBackwardTableArgs, order),
        FIELD(LmmSpliceBackwardTableArgs, partial), FIELD(LmmSpliceBackwardTableArgs, bounds),
        FIELD(LmmSpliceBackwardTableArgs, table_grad), FIELD(LmmSpliceBackwardTableArgs, grad_row),
        FIELD(LmmSpliceBackwardTableArgs, table_row), FIELD(LmmSpliceBackwardTableArgs, vocabulary),
        FIELD(LmmSpliceBackwardTableArgs, width), FIELD(LmmSpliceBackwardTableArgs, adding),
        FIELD(LmmSpliceBackwardTableArgs, grad_type), FIELD(LmmSpliceBackwardTableArgs, table_type),
        FIELD(LmmSpliceBackwardTableArgs, scaled), FIELD(LmmSpliceBackwardTableArgs, scale),
        FIELD(LmmSpliceBackwardTableArgs, device));

    // attention/
    module.def("attention_tiles", &attention_tiles, py::arg("lengths_q"), py::arg("lengths_k"), py::arg("rows_q"), py::arg("mask"),
               "(segment, block) of every tile of rows, longest first, flat: the `tiles` of attention_forward");
    lmm::add_launcher(
        module, "attention_forward", lmm_attention_forward,
        FIELD(LmmAttentionForwardArgs, q), FIELD(LmmAttentionForwardArgs, k), FIELD(LmmAttentionForwardArgs, v),
        FIELD(LmmAttentionForwardArgs, out), FIELD(LmmAttentionForwardArgs, lse), FIELD(LmmAttentionForwardArgs, cu_q),
        FIELD(LmmAttentionForwardArgs, cu_k), FIELD(LmmAttentionForwardArgs, kv_end), FIELD(LmmAttentionForwardArgs, tiles),
        FIELD(LmmAttentionForwardArgs, q_row), FIELD(LmmAttentionForwardArgs, q_head), FIELD(LmmAttentionForwardArgs, k_row),
        FIELD(LmmAttentionForwardArgs, k_head), FIELD(LmmAttentionForwardArgs, v_row), FIELD(LmmAttentionForwardArgs, v_head),
        FIELD(LmmAttentionForwardArgs, rows_q), FIELD(LmmAttentionForwardArgs, tile_count),
        FIELD(LmmAttentionForwardArgs, longest_q), FIELD(LmmAttentionForwardArgs, even), FIELD(LmmAttentionForwardArgs, segments),
        FIELD(LmmAttentionForwardArgs, heads), FIELD(LmmAttentionForwardArgs, kv_heads), FIELD(LmmAttentionForwardArgs, head_dim),
        FIELD(LmmAttentionForwardArgs, mask), FIELD(LmmAttentionForwardArgs, dtype), FIELD(LmmAttentionForwardArgs, device),
        FIELD(LmmAttentionForwardArgs, scale));

    module.def("attention_backward_workspace", &lmm_attention_backward_workspace, py::arg("rows_q"), py::arg("segments"), py::arg("heads"),
               py::arg("head_dim"), "Bytes of the workspace of attention_backward");
    module.def("attention_backward_shared", &lmm_attention_backward_shared, py::arg("head_dim"),
               "Bytes of shared memory of a CTA of attention_backward; all other launches fit every device from compute capability 8.0 on");
    lmm::add_launcher(
        module, "attention_backward", lmm_attention_backward,
        FIELD(LmmAttentionBackwardArgs, q), FIELD(LmmAttentionBackwardArgs, k), FIELD(LmmAttentionBackwardArgs, v),
        FIELD(LmmAttentionBackwardArgs, out), FIELD(LmmAttentionBackwardArgs, grad), FIELD(LmmAttentionBackwardArgs, lse),
        FIELD(LmmAttentionBackwardArgs, grad_lse), FIELD(LmmAttentionBackwardArgs, dq), FIELD(LmmAttentionBackwardArgs, dk),
        FIELD(LmmAttentionBackwardArgs, dv), FIELD(LmmAttentionBackwardArgs, cu_q), FIELD(LmmAttentionBackwardArgs, cu_k),
        FIELD(LmmAttentionBackwardArgs, kv_end), FIELD(LmmAttentionBackwardArgs, workspace),
        FIELD(LmmAttentionBackwardArgs, workspace_bytes), FIELD(LmmAttentionBackwardArgs, q_row),
        FIELD(LmmAttentionBackwardArgs, q_head), FIELD(LmmAttentionBackwardArgs, k_row),
        FIELD(LmmAttentionBackwardArgs, k_head), FIELD(LmmAttentionBackwardArgs, v_row),
        FIELD(LmmAttentionBackwardArgs, v_head), FIELD(LmmAttentionBackwardArgs, grad_row),
        FIELD(LmmAttentionBackwardArgs, grad_head), FIELD(LmmAttentionBackwardArgs, grad_lse_row),
        FIELD(LmmAttentionBackwardArgs, grad_lse_head), FIELD(LmmAttentionBackwardArgs, rows_q),
        FIELD(LmmAttentionBackwardArgs, rows_k), FIELD(LmmAttentionBackwardArgs, segments),
        FIELD(LmmAttentionBackwardArgs, heads), FIELD(LmmAttentionBackwardArgs, kv_heads),
        FIELD(LmmAttentionBackwardArgs, head_dim), FIELD(LmmAttentionBackwardArgs, mask),
        FIELD(LmmAttentionBackwardArgs, dtype), FIELD(LmmAttentionBackwardArgs, device),
        FIELD(LmmAttentionBackwardArgs, scale));

    // attention/: decode
    lmm::add_launcher(
        module, "attention_decode", lmm_attention_decode,
        FIELD(LmmAttentionDecodeArgs, q), FIELD(LmmAttentionDecodeArgs, k), FIELD(LmmAttentionDecodeArgs, v),
        FIELD(LmmAttentionDecodeArgs, out), FIELD(LmmAttentionDecodeArgs, lse), FIELD(LmmAttentionDecodeArgs, cu_q),
        FIELD(LmmAttentionDecodeArgs, cu_k), FIELD(LmmAttentionDecodeArgs, page_table), FIELD(LmmAttentionDecodeArgs, lengths),
        FIELD(LmmAttentionDecodeArgs, partial), FIELD(LmmAttentionDecodeArgs, partial_log), FIELD(LmmAttentionDecodeArgs, ranges),
        FIELD(LmmAttentionDecodeArgs, q_row), FIELD(LmmAttentionDecodeArgs, q_head), FIELD(LmmAttentionDecodeArgs, k_page),
        FIELD(LmmAttentionDecodeArgs, k_row), FIELD(LmmAttentionDecodeArgs, k_head), FIELD(LmmAttentionDecodeArgs, v_page),
        FIELD(LmmAttentionDecodeArgs, v_row), FIELD(LmmAttentionDecodeArgs, v_head), FIELD(LmmAttentionDecodeArgs, table_row),
        FIELD(LmmAttentionDecodeArgs, rows_q), FIELD(LmmAttentionDecodeArgs, longest_q), FIELD(LmmAttentionDecodeArgs, segments),
        FIELD(LmmAttentionDecodeArgs, heads), FIELD(LmmAttentionDecodeArgs, kv_heads), FIELD(LmmAttentionDecodeArgs, head_dim),
        FIELD(LmmAttentionDecodeArgs, page_rows), FIELD(LmmAttentionDecodeArgs, parts), FIELD(LmmAttentionDecodeArgs, goal),
        FIELD(LmmAttentionDecodeArgs, least_steps), FIELD(LmmAttentionDecodeArgs, most_parts), FIELD(LmmAttentionDecodeArgs, causal),
        FIELD(LmmAttentionDecodeArgs, window), FIELD(LmmAttentionDecodeArgs, dtype), FIELD(LmmAttentionDecodeArgs, device),
        FIELD(LmmAttentionDecodeArgs, scale), FIELD(LmmAttentionDecodeArgs, softcap));
}
