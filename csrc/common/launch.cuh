// What every launcher does around its kernel: refuse with a code, stand on the right device, launch, report.
//
//   extern "C" int lmm_splice(const LmmSpliceArgs* args, cudaStream_t stream) {
//       if (args->rows == 0) return LMM_OK;
//       if (!lmm::aligned16(args->out)) return LMM_MISALIGNED;
//       lmm::DeviceGuard guard(args->device);
//       if (guard.error() != cudaSuccess) return guard.error();
//       cudaError_t error;
//       LMM_LAUNCH(error, (splice_kernel<8>), grid, block, 0, stream, *args);
//       return error;
//   }
//
// Positive codes are CUDA's own, negative ones are ours; lmm::error_message has words for both. Nothing is allocated on the device.
#pragma once

#include "common/cuda.cuh"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

enum LmmCode : int {
    LMM_OK = 0,
    LMM_BAD_DTYPE = -1,
    LMM_BAD_HEAD_DIM = -2,
    LMM_MISALIGNED = -3,
    LMM_BAD_STRIDE = -4,
    LMM_BAD_SIZE = -5,
    LMM_NULL_POINTER = -6,
    LMM_BAD_HEADS = -7,
    LMM_BAD_PAGE_SIZE = -8,
    LMM_SMALL_WORKSPACE = -9,
    LMM_UNSUPPORTED = -10,
};

// Element types in argument structs.
enum LmmDtype : int32_t { LMM_FLOAT32 = 0, LMM_FLOAT16 = 1, LMM_BFLOAT16 = 2 };

namespace lmm {

inline const char* error_message(int code) {
    switch (code) {
        case LMM_OK: return "no error";
        case LMM_BAD_DTYPE: return "dtype: found one this kernel was not built for, expected float16 or bfloat16 (splice: or float32); cast the tensors";
        case LMM_BAD_HEAD_DIM: return "head dim: found one this kernel was not built for, expected 64 or 128 (decode: or 256); use another backend";
        case LMM_MISALIGNED: return "pointer: found one that is no multiple of 16 bytes, expected 16-byte alignment; copy the tensor";
        case LMM_BAD_STRIDE: return "stride: found a last stride other than 1 or a row stride that is no multiple of 16 bytes; copy the tensor";
        case LMM_BAD_SIZE: return "size: found a negative size or one beyond the kernel's range; split the call";
        case LMM_NULL_POINTER: return "pointer: found null, expected a tensor; pass the tensor or turn the feature off";
        case LMM_BAD_HEADS: return "heads: found query heads that are no multiple of the key heads; use another backend";
        case LMM_BAD_PAGE_SIZE: return "page size: found one this kernel was not built for; use another backend";
        case LMM_SMALL_WORKSPACE: return "workspace: found one smaller than the call needs; allocate what the op's plan says";
        case LMM_UNSUPPORTED: return "found a combination of arguments this kernel was not built for; use another backend";
        default: break;
    }
    return code < 0 ? "found a code that is not in launch.cuh" : cudaGetErrorString(static_cast<cudaError_t>(code));
}

inline bool aligned16(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Stands on `device` until the end of the scope, then goes back: a launch can never land on the wrong GPU.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        error_ = cudaGetDevice(&before_);
        if (error_ != cudaSuccess || before_ == device) return;
        error_ = cudaSetDevice(device);
        moved_ = error_ == cudaSuccess;
    }
    ~DeviceGuard() {
        if (moved_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t error() const { return error_; }

  private:
    int before_ = 0;
    bool moved_ = false;
    cudaError_t error_ = cudaSuccess;
};

// More than 48 KiB of dynamic shared memory must be asked for; this asks once for each kernel and device (and again when more is wanted).
inline cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
    if (bytes <= 48 * 1024) return cudaSuccess;
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, size_t> allowed;
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    std::lock_guard<std::mutex> lock(mutex);
    size_t& found = allowed[{kernel, device}];
    if (found >= bytes) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error == cudaSuccess) found = bytes;
    return error;
}

// The kernel's parameters are copied here with its own types, so an argument is converted as in a call.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
    const void* const symbol = reinterpret_cast<const void*>(kernel);
    if (cudaError_t error = allow_shared_memory(symbol, smem_bytes); error != cudaSuccess) return error;
#ifdef LMM_SIMT
    simt::know(kernel);
#endif
    std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
    return std::apply(
        [&](auto&... value) {
            void* pointers[] = {static_cast<void*>(&value)..., nullptr};
            return cudaLaunchKernel(symbol, grid, block, pointers, smem_bytes, stream);
        },
        values);
}

}  // namespace lmm

// `kernel` in brackets, so that the commas of its template arguments are its own: LMM_LAUNCH(error, (kernel<T, 64>), ...).
#define LMM_LAUNCH(error, kernel, grid, block, smem_bytes, stream, ...) \
    ((error) = ::lmm::launch(kernel, grid, block, smem_bytes, stream, __VA_ARGS__))
