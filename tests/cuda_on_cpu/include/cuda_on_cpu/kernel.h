// What nvcc gives every .cu file; the rewritten file includes it first.
//
// DETRX_EMULATED tells the sources that they are not compiled for a GPU, though __CUDACC__ and __CUDA_ARCH__ are defined.
#pragma once

#include "atomics.h"
#include "device_functions.h"
#include "execution.h"
#include "host_functions.h"
#include "reduced_floats.h"
#include "synchronization.h"
#include "unsupported.h"
#include "vector_types.h"

#define DETRX_EMULATED 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __noinline__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define CUDA_ON_CPU_FIRST(...) CUDA_ON_CPU_FIRST_OF(__VA_ARGS__, )
#define CUDA_ON_CPU_FIRST_OF(first, ...) (first)

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_dim())
#define gridDim (::cuda_on_cpu::grid_dim())

#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(condition) \
  ((condition) ? void() : ::cuda_on_cpu::assertion_failed(#condition, __FILE__, __LINE__))
#undef assert
#define assert(condition) CUDA_KERNEL_ASSERT(condition)
#define __trap() ::cuda_on_cpu::assertion_failed("__trap()", __FILE__, __LINE__)
