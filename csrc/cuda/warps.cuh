// Blocks of warps, and how they share work: what the kernels of all families have in common.
#pragma once

#include <algorithm>
#include <cstdint>

namespace detrx::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;  // per block
constexpr int kWarps = kThreads / kWarp;

// kCount elements that are read and written together, up to 16 bytes at a time.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

// Blocks for `count` items, `per_block` of them in each; the kernels stride over what lies beyond.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + per_block - 1) / per_block, 1, 1 << 20));
}

// Whether rows of `row_bytes` that begin at these addresses can be read 16 bytes at a time.
template <typename... Pointers>
bool fits_16_bytes(int64_t row_bytes, Pointers... pointers) {
  return row_bytes % 16 == 0 && (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

__device__ __forceinline__ int lane() {
  return threadIdx.x % kWarp;
}
__device__ __forceinline__ int64_t first_warp() {
  return int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}
__device__ __forceinline__ int64_t warp_stride() {
  return int64_t(gridDim.x) * kWarps;
}
__device__ __forceinline__ int64_t first_thread() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t thread_stride() {
  return int64_t(gridDim.x) * kThreads;
}

}  // namespace detrx::cuda
