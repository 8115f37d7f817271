// The few names of the CUDA runtime that launchers use. There is one device, an A100 as far as its limits go, and every stream is done at once.
#pragma once

#include "simt/fault.h"
#include "simt/grid.h"

using cudaStream_t = struct CUstream_st*;

enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    const bool too_much = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > simt::A100_SHARED_BYTES;
    return too_much ? cudaErrorInvalidValue : cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 108; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor: *value = 8; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::A100_SHARED_BYTES; return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
    std::memset(pointer, value, bytes);
    return cudaSuccess;
}

// A launch that the emulator refused says here what it saw.
inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorLaunchFailure: return simt::last_fault().c_str();
    }
    return "unrecognized error code";
}

namespace simt {

template <class Kernel>
cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t smem_bytes) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
    if (empty || threads > 1024 || block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
    if (smem_bytes > A100_SHARED_BYTES) return cudaErrorInvalidValue;
    return run_grid(grid, block, smem_bytes, kernel) ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace simt
