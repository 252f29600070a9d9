// The dot products of the output's gradient with the values at the corners of a point, on tensor cores or by shuffles.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "tensor_cores.cuh"

namespace detrx::cuda {

// Sums four numbers over the lanes of a group into `sums`, with as few shuffles as possible: every step halves what a
// lane still has to sum, as long as there is more than one number.
template <int kGroup, typename C>
__device__ __forceinline__ void group_sums(const C (&x)[4], int lane, C* sums) {
  const bool odd = lane & 1;
  const C first = (odd ? x[2] : x[0]) + __shfl_xor_sync(kAllLanes, odd ? x[0] : x[2], 1);
  const C second = (odd ? x[3] : x[1]) + __shfl_xor_sync(kAllLanes, odd ? x[1] : x[3], 1);
  if constexpr (kGroup == 2) {
    sums[2 * odd] = first;
    sums[2 * odd + 1] = second;
  } else {
    const bool upper = lane & 2;
    C sum = (upper ? second : first) + __shfl_xor_sync(kAllLanes, upper ? first : second, 2);
#pragma unroll
    for (int offset = 4; offset < kGroup; offset *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    if (lane < 4) {
      sums[2 * odd + upper] = sum;
    }
  }
}

template <typename T, int kChannels>
__device__ constexpr bool has_tensor_cores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return sizeof(T) == 2 && (kChannels == 32 || kChannels == 64);
#else
  return false;
#endif
}

// The dot products of one point, in its item's channels. `corner` and `grad` are the lane's channels.
//
// On tensor cores, row r of the first matrix is what lanes 4 * r to 4 * r + 3 have of a corner, and column r of the
// second one what they have of the gradient: so the dot products are on the diagonal. Of the 16 rows, 8 are for one
// corner and 8 for another. What is beside the diagonals is not used.
template <typename T, typename C, int kChannels, int kVector>
__device__ __forceinline__ void dot_products(
    const Pack<T, kVector> (&corner)[4], const Pack<T, kVector>& grad, int lane, C* dots) {
  constexpr int kGroup = Layout<T, kChannels>::kGroup;
  if constexpr (has_tensor_cores<T, kChannels>()) {
    uint32_t x[4][4], y[4];
    __builtin_memcpy(x, corner, sizeof(x));
    __builtin_memcpy(y, &grad, sizeof(y));
    float upper[4] = {}, lower[4] = {};  // corners 0 and 1, corners 2 and 3
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      multiply_add<T>(upper, {x[0][i], x[1][i], x[0][i + 1], x[1][i + 1]}, {y[i], y[i + 1]});
      multiply_add<T>(lower, {x[2][i], x[3][i], x[2][i + 1], x[3][i + 1]}, {y[i], y[i + 1]});
    }
    const int row = threadIdx.x % kWarp / 4;
    const bool odd = row % 2;
    Pack<float, 4> sums{
        {odd ? upper[1] : upper[0], odd ? upper[3] : upper[2], odd ? lower[1] : lower[0], odd ? lower[3] : lower[2]}};
    if constexpr (kGroup == 8) {  // an item has two rows
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums.value[k] += __shfl_xor_sync(kAllLanes, sums.value[k], 4);
      }
    }
    if (threadIdx.x % 4 == row / 2 && (kGroup == 4 || !odd)) {
      *reinterpret_cast<Pack<float, 4>*>(dots) = sums;
    }
  } else {
    C partial[4] = {}, widened_grad[kVector];
    widen(grad, widened_grad);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      C widened[kVector];
      widen(corner[k], widened);
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        partial[k] += widened_grad[c] * widened[c];
      }
    }
    group_sums<kGroup>(partial, lane, dots);
  }
}

}  // namespace detrx::cuda
