#pragma once

// Functions that CPU and CUDA code share. nvcc compiles them for both sides.
#if defined(__CUDACC__)
#define DETRX_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DETRX_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Before a loop of constant length whose arrays a GPU is to keep in registers.
#if defined(__CUDA_ARCH__)
#define DETRX_UNROLL _Pragma("unroll")
#else
#define DETRX_UNROLL
#endif
