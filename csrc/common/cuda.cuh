// The only way to CUDA. Under nvcc it is the toolkit; under -DLMM_SIMT (g++, tests) it is the emulator in simt/, which gives the same names.
//
// Kernels take shared memory through two macros, so that the emulator can poison it and fence it in:
//   LMM_DYNAMIC_SHARED(unsigned char, name)   `type* name`: the launch's smem_bytes, 128-byte aligned
//   LMM_SHARED(type, name, count)             `type name[count]`, once per CTA, 16-byte aligned
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef LMM_SIMT
#include "simt/simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// One extern array for all kernels of a file: nvcc wants every declaration of the name to have the same type.
#define LMM_DYNAMIC_SHARED(type, name)                               \
    extern __shared__ __align__(128) unsigned char lmm_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(lmm_dynamic_shared)
#define LMM_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#endif
