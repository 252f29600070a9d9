// How the lanes of a warp divide the channels of a head. A group of lanes works on an item, which is a query and head;
// every lane has 16 bytes of the item's channels. All lanes of a warp stay together: groups beyond the last item repeat
// it and write nothing.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

#include "../../cuda/warps.cuh"
#include "../../reduced_float.h"

namespace detrx::cuda {

// For heads of kChannels channels, 0 for any number of them: then a warp takes an item, a channel per lane at a time.
template <typename T, int kChannels>
struct Layout {
  static constexpr int kVector = kChannels ? 16 / sizeof(T) : 1;
  static constexpr int kGroup = kChannels ? kChannels / kVector : kWarp;
};

// A thread's place in its block.
template <int kGroup>
struct Place {
  int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup, groups = blockDim.x / kGroup;
};

template <int kGroup, typename C>
__device__ __forceinline__ C group_sum(C x) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

template <int kGroup, typename C>
__device__ __forceinline__ C group_maximum(C x) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    const C other = __shfl_xor_sync(kAllLanes, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

// In the type of the arithmetic. The two bfloat16 of a word need one instruction each.
template <typename C, typename T, int kCount>
__device__ __forceinline__ void widen(const Pack<T, kCount>& from, C (&to)[kCount]) {
  if constexpr (std::is_same_v<T, c10::BFloat16> && kCount % 2 == 0) {
    uint32_t words[kCount / 2];
    __builtin_memcpy(words, &from, sizeof(from));
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      to[2 * i] = float_from_bits(words[i] << 16);
      to[2 * i + 1] = float_from_bits(words[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      to[i] = static_cast<C>(from.value[i]);
    }
  }
}

// `vectors` vectors of kCount numbers behind `first`. One instruction makes an address of a base and 32 bits.
template <int kCount, typename T>
__device__ __forceinline__ T* behind(T* first, unsigned vectors) {
  typedef T Vector[kCount];
  return reinterpret_cast<Vector*>(first)[vectors];
}

// The tokens of one head in `value`, a contiguous (B, S, M, D) tensor, or in its gradient, as one lane sees them.
// Element is the type of that tensor's elements. A row is told by the vectors of `value` before it, or by its token
// where D may be anything.
template <typename T, int kChannels, typename Element>
class HeadRows {
 public:
  // `first` is the lane's first channel of token 0.
  __device__ __forceinline__ HeadRows(Element* first, int64_t elements_per_token)
      : first_(first), elements_per_token_(elements_per_token) {}

  __device__ __forceinline__ Element* at(unsigned row, int64_t channel = 0) const {
    if constexpr (kChannels) {
      return behind<Layout<T, kChannels>::kVector>(first_, row);
    } else {
      return first_ + row * elements_per_token_ + channel;
    }
  }

 private:
  Element* first_;
  int64_t elements_per_token_;
};

template <typename T, int kChannels>
__device__ __forceinline__ unsigned row_of_token(unsigned token, int64_t elements_per_token) {
  return kChannels ? token * unsigned(elements_per_token / Layout<T, kChannels>::kVector) : token;
}

}  // namespace detrx::cuda
