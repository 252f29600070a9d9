// Products of small matrices of float16 or bfloat16 on tensor cores: exact products, summed in float32.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "channels.cuh"

namespace detrx::cuda {

// Adds to d[m][n] the sum over k of a[m][k] * b[k][n], for 16 m, 8 n and 16 k. A warp holds the matrices together. With
// r = lane / 4 and c = 2 * (lane % 4), a lane has in a word of
//   a: [r][c], [r + 8][c], [r][c + 8] and [r + 8][c + 8], and what follows each in its row
//   b: [c][r] and [c + 8][r], and what follows each in its column
// and in d: [r][c], [r][c + 1], [r + 8][c], [r + 8][c + 1].
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, c10::Half> || std::is_same_v<T, c10::BFloat16>);
#if defined(DETRX_EMULATED)
  const int lane = threadIdx.x % kWarp, r = lane / 4, c = lane % 4;
  for (int source = 0; source < 4; ++source) {  // of the four lanes that share a row of a or a column of b
    for (int k = 0; k < 2; ++k) {
      const uint32_t column[2] = {__shfl_sync(kAllLanes, b[k], 8 * c + source),
                                  __shfl_sync(kAllLanes, b[k], 8 * c + 4 + source)};
      for (int m = 0; m < 2; ++m) {
        const uint32_t row = __shfl_sync(kAllLanes, a[2 * k + m], 4 * r + source);
        for (int n = 0; n < 2; ++n) {
          Pack<T, 2> x, y;
          __builtin_memcpy(&x, &row, sizeof(x));
          __builtin_memcpy(&y, &column[n], sizeof(y));
          d[2 * m + n] += static_cast<float>(x.value[0]) * static_cast<float>(y.value[0]) +
                          static_cast<float>(x.value[1]) * static_cast<float>(y.value[1]);
        }
      }
    }
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // volatile: all lanes have to execute it, also where only some of them use the result.
#define DETRX_MULTIPLY_ADD(type)                                                                                  \
  asm volatile(                                                                                                   \
      "mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
      "{%0, %1, %2, %3};"                                                                                         \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, c10::Half>) {
    DETRX_MULTIPLY_ADD("f16");
  } else {
    DETRX_MULTIPLY_ADD("bf16");
  }
#undef DETRX_MULTIPLY_ADD
#endif
}

}  // namespace detrx::cuda
