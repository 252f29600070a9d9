// Sums in global memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "channels.cuh"

// Hopper adds four floats at once; CUDA has that since 12.1.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
#define DETRX_VECTOR_ATOMICS
#endif

namespace detrx::cuda {

// How many numbers one operation adds, of kCount side by side.
template <typename C, int kCount>
__device__ constexpr int atomic_width() {
#if defined(DETRX_VECTOR_ATOMICS)
  return std::is_same_v<C, float> && kCount % 4 == 0 ? 4 : 1;
#else
  return 1;
#endif
}

template <typename C>
__device__ __forceinline__ void add_atomically(C* target, const C (&x)[1]) {
  atomicAdd(target, x[0]);
}

#if defined(DETRX_VECTOR_ATOMICS)
__device__ __forceinline__ void add_atomically(float* target, const float (&x)[4]) {
  atomicAdd(reinterpret_cast<float4*>(target), make_float4(x[0], x[1], x[2], x[3]));
}
#endif

// How a group of lanes divides a row of kGroup * kCount channels that it adds to: so that all its lanes together touch
// consecutive memory in every operation. A lane's pointers begin with its first channel, at lane * kWidth.
template <typename C, int kGroup, int kCount>
struct RowSums {
  static constexpr int kWidth = atomic_width<C, kCount>();

  template <typename T>
  __device__ __forceinline__ static void read(const T* row, C (&x)[kCount]) {
    Pack<T, kWidth> pieces[kCount / kWidth];
#pragma unroll
    for (int i = 0; i < kCount / kWidth; ++i) {
      pieces[i] = load<kWidth>(row + i * kGroup * kWidth);
    }
#pragma unroll
    for (int i = 0; i < kCount / kWidth; ++i) {
      C piece[kWidth];
      widen(pieces[i], piece);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        x[i * kWidth + c] = piece[c];
      }
    }
  }
  __device__ __forceinline__ static void add(C* row, const C (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount / kWidth; ++i) {
      C piece[kWidth];
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        piece[c] = x[i * kWidth + c];
      }
      add_atomically(row + i * kGroup * kWidth, piece);
    }
  }
};

}  // namespace detrx::cuda
