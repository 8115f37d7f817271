// The few names of the CUDA runtime that launchers use. There are two devices, A100s as far as their limits go, and every stream is done at once.
#pragma once

#include "simt/fault.h"
#include "simt/grid.h"

#include <utility>

using cudaStream_t = struct CUstream_st*;

enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

namespace simt {

inline constexpr int DEVICES = 2;
inline constexpr size_t SHARED_BYTES_UNASKED = 48 * 1024;  // of dynamic shared memory; more must be asked for, for each kernel and device

inline int& current_device() {
    static thread_local int device = 0;
    return device;
}

// Where the launches that a test makes must land, once it says so.
struct Expected {
    bool set = false;
    int device = 0;
    cudaStream_t stream = nullptr;
};
inline Expected expected{};

struct KernelOnDevice {
    size_t shared_bytes = SHARED_BYTES_UNASKED;
};
inline std::map<std::pair<const void*, int>, KernelOnDevice> kernels_on_devices;

inline std::mutex& runtime_mutex() {
    static std::mutex mutex;
    return mutex;
}

// How a kernel is called with pointers to its parameters, as cudaLaunchKernel has them.
using CallWithPointers = void (*)(const void* kernel, void** parameters);
inline std::map<const void*, CallWithPointers> known_kernels;

template <class... Parameters, size_t... places>
void call_with_pointers(void (*kernel)(Parameters...), void** parameters, std::index_sequence<places...>) {
    kernel(*static_cast<std::remove_cv_t<Parameters>*>(parameters[places])...);
}

// To be told of a kernel before it is launched.
template <class... Parameters>
void know(void (*kernel)(Parameters...)) {
    std::lock_guard<std::mutex> lock(runtime_mutex());
    known_kernels[reinterpret_cast<const void*>(kernel)] = [](const void* symbol, void** parameters) {
        call_with_pointers(reinterpret_cast<void (*)(Parameters...)>(symbol), parameters, std::index_sequence_for<Parameters...>{});
    };
}

// The threads of its __launch_bounds__, which are as many one-byte instructions before it (language.h). Fewer than a warp: alignment, and no bounds.
inline uint64_t most_threads(const void* kernel) {
#ifdef __x86_64__
    const auto* before = static_cast<const unsigned char*>(kernel);
    uint64_t found = 0;
    while (found < 1024 && before[-1 - static_cast<std::ptrdiff_t>(found)] == 0x90) ++found;
    return found < 32 ? 1024 : found / 32 * 32;
#else
    static_cast<void>(kernel);
    return 1024;
#endif
}

inline cudaError_t refused(cudaError_t code, const std::string& why) {
    last_fault() = why;
    return code;
}

}  // namespace simt

inline cudaError_t cudaGetDevice(int* device) {
    *device = simt::current_device();
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= simt::DEVICES) return cudaErrorInvalidDevice;
    simt::current_device() = device;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = simt::DEVICES;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > simt::A100_SHARED_BYTES) return cudaErrorInvalidValue;
    std::lock_guard<std::mutex> lock(simt::runtime_mutex());
    simt::kernels_on_devices[{kernel, simt::current_device()}].shared_bytes = static_cast<size_t>(value);
    return cudaSuccess;
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
        case cudaErrorInvalidResourceHandle: return simt::last_fault().c_str();
        case cudaErrorLaunchOutOfResources: return simt::last_fault().c_str();
        case cudaErrorLaunchFailure: return simt::last_fault().c_str();
    }
    return "unrecognized error code";
}

inline cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** parameters, size_t smem_bytes, cudaStream_t stream) {
    using simt::refused, simt::text;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
    if (empty || threads > 1024 || block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
    const int device = simt::current_device();
    simt::CallWithPointers call;
    size_t shared_bytes;
    {
        std::lock_guard<std::mutex> lock(simt::runtime_mutex());
        call = simt::known_kernels.at(kernel);
        shared_bytes = simt::kernels_on_devices[{kernel, device}].shared_bytes;
    }
    if (smem_bytes > shared_bytes) {
        return refused(cudaErrorInvalidValue, text("%zu bytes of dynamic shared memory on device %d, where at most %zu were asked for", smem_bytes, device, shared_bytes));
    }
    if (threads > simt::most_threads(kernel)) {
        const auto most = static_cast<unsigned long>(simt::most_threads(kernel));
        return refused(cudaErrorLaunchOutOfResources, text("%lu threads, the kernel's launch bounds are %lu", static_cast<unsigned long>(threads), most));
    }
    const simt::Expected& expected = simt::expected;
    if (expected.set && (device != expected.device || stream != expected.stream)) {
        return refused(cudaErrorInvalidResourceHandle, text("launched on stream %p of device %d, expected stream %p of device %d", static_cast<void*>(stream), device,
                                                            static_cast<void*>(expected.stream), expected.device));
    }
    return simt::run_grid(grid, block, smem_bytes, [=] { call(kernel, parameters); }) ? cudaSuccess : cudaErrorLaunchFailure;
}
