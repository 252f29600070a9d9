// What launchers ask of CUDA's runtime and of c10: one device, with the numbers of an H100. Everything is done at once and
// in order, so that streams and guards have nothing to do.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "execution.h"

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

namespace cuda_on_cpu {

constexpr int kSharedMemory = 48 * 1024;         // of a block, for nothing
constexpr int kSharedMemoryOptIn = 227 * 1024;   // of a block whose kernel asked for it

void allow_dynamic_shared(const void* kernel, int bytes);

}  // namespace cuda_on_cpu

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = cuda_on_cpu::kSharedMemory; break;
    case cudaDevAttrWarpSize: *value = cuda_on_cpu::kWarp; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrL2CacheSize: *value = 50 * 1024 * 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = cuda_on_cpu::kSharedMemoryOptIn; break;
    default: return cudaErrorInvalidValue;
  }
  return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > cuda_on_cpu::kSharedMemoryOptIn) {
      return cudaErrorInvalidValue;
    }
    cuda_on_cpu::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}

namespace c10::cuda {

struct CUDAGuard {
  template <typename Device>
  explicit CUDAGuard(const Device&) {}
  ~CUDAGuard() {}
};
typedef CUDAGuard OptionalCUDAGuard;

struct CUDAStream {
  operator cudaStream_t() const { return nullptr; }
  cudaStream_t stream() const { return nullptr; }
};
inline CUDAStream getCurrentCUDAStream(int = -1) { return {}; }

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error) + ": " + what);
  }
}

}  // namespace c10::cuda

#define C10_CUDA_CHECK(call) ::c10::cuda::check(call, #call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
