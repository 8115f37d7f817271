// Stands in for the CUDA runtime: a launch is written down instead of made, so that what a launcher asks for is known without a GPU.
//
// Linked with the launchers' own objects, as nvcc made them. Objects register their kernels by name before main(); `cudaLaunchKernel` looks the name up
// and prints "name threads dynamic_shared_bytes". The device it claims to be is an A100. A call that is missing here fails to link, and is to be added.
// main() runs every case of launches/, and fails when a launcher refuses one.
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "launches/case.h"

namespace {

std::map<const void*, std::string>& kernels() {  // made at the first use: objects register before main(), in any order
    static std::map<const void*, std::string> found;
    return found;
}

std::vector<recorded::Case>& cases() {
    static std::vector<recorded::Case> found;
    return found;
}

cudaError_t record(const void* kernel, dim3 block, size_t shared_bytes) {
    auto found = kernels().find(kernel);
    if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
    std::printf("%s %u %zu\n", found->second.c_str(), block.x * block.y * block.z, shared_bytes);
    return cudaSuccess;
}

}  // namespace

recorded::Case::Case(const char* name_, int (*run_)()) : name(name_), run(run_) { cases().push_back(*this); }

int main() {
    int refused = 0;
    for (const recorded::Case& one : cases()) {
        if (int code = one.run(); code != 0) {
            std::fprintf(stderr, "case '%s': the launcher returned %d (csrc/common/launch.cuh says what that means)\n", one.name, code);
            refused = 1;
        }
    }
    return refused;
}

extern "C" {

// What nvcc's own code calls: registration, and the <<<>>> of a kernel.
void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    kernels()[kernel] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return cudaErrorNotSupported; }  // launchers go through launch.cuh
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
    *kernel = function;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(const void* kernel, dim3, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
    return record(kernel, block, shared_bytes);
}

// What launchers call.
cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
    return record(kernel, block, shared_bytes);
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "a code of the stand-in for the CUDA runtime"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 108; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 163 * 1024; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor: *value = 8; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
        default: return cudaErrorNotSupported;
    }
}

}  // extern "C"
