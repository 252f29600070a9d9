// Barriers, and operations among the lanes of a warp.
#pragma once

#include <type_traits>

#include "execution.h"

#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_ON_CPU_HERE ::cuda_on_cpu::Place{__func__, file, line}

constexpr int warpSize = ::cuda_on_cpu::kWarp;

CUDA_ON_CPU_UNCHECKED inline void __syncthreads(CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::block_barrier(false, CUDA_ON_CPU_HERE);
}
CUDA_ON_CPU_UNCHECKED inline int __syncthreads_count(int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_barrier(vote != 0, CUDA_ON_CPU_HERE);
}
CUDA_ON_CPU_UNCHECKED inline int __syncthreads_or(int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_barrier(vote != 0, CUDA_ON_CPU_HERE) > 0;
}
CUDA_ON_CPU_UNCHECKED inline int __syncthreads_and(int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_barrier(vote == 0, CUDA_ON_CPU_HERE) == 0;
}

CUDA_ON_CPU_UNCHECKED inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::warp_operation(cuda_on_cpu::WarpOperation::kSync, mask, 0, 0, warpSize, CUDA_ON_CPU_HERE);
}

#define CUDA_ON_CPU_SHUFFLE(name, operation, argument_type)                                                      \
  template <typename T>                                                                                          \
  CUDA_ON_CPU_UNCHECKED T name(                                                                                  \
      unsigned mask, T value, argument_type argument, int width = warpSize, CUDA_ON_CPU_PLACE) {                 \
    return cuda_on_cpu::from_bits<T>(cuda_on_cpu::warp_operation(                                                \
        cuda_on_cpu::WarpOperation::operation, mask, cuda_on_cpu::to_bits(value), static_cast<int>(argument),    \
        width, CUDA_ON_CPU_HERE));                                                                               \
  }
CUDA_ON_CPU_SHUFFLE(__shfl_sync, kShuffle, int)
CUDA_ON_CPU_SHUFFLE(__shfl_up_sync, kShuffleUp, unsigned)
CUDA_ON_CPU_SHUFFLE(__shfl_down_sync, kShuffleDown, unsigned)
CUDA_ON_CPU_SHUFFLE(__shfl_xor_sync, kShuffleXor, int)
#undef CUDA_ON_CPU_SHUFFLE

CUDA_ON_CPU_UNCHECKED inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return static_cast<unsigned>(cuda_on_cpu::warp_operation(
      cuda_on_cpu::WarpOperation::kBallot, mask, vote != 0, 0, warpSize, CUDA_ON_CPU_HERE));
}
CUDA_ON_CPU_UNCHECKED inline int __any_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return __ballot_sync(mask, vote, file, line) != 0;
}
CUDA_ON_CPU_UNCHECKED inline int __all_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return __ballot_sync(mask, vote == 0, file, line) == 0;
}
template <typename T>
CUDA_ON_CPU_UNCHECKED unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE) {
  return static_cast<unsigned>(cuda_on_cpu::warp_operation(
      cuda_on_cpu::WarpOperation::kMatchAny, mask, cuda_on_cpu::to_bits(value), 0, warpSize, CUDA_ON_CPU_HERE));
}

#define CUDA_ON_CPU_REDUCE(name, type, operation)                                                                \
  CUDA_ON_CPU_UNCHECKED inline type name(unsigned mask, type value, CUDA_ON_CPU_PLACE) {                         \
    return cuda_on_cpu::from_bits<type>(cuda_on_cpu::warp_operation(                                             \
        cuda_on_cpu::WarpOperation::operation, mask, cuda_on_cpu::to_bits(value), 0, warpSize,                   \
        CUDA_ON_CPU_HERE));                                                                                      \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, unsigned, kAddUnsigned)
CUDA_ON_CPU_REDUCE(__reduce_add_sync, int, kAddSigned)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, unsigned, kMinUnsigned)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, int, kMinSigned)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, unsigned, kMaxUnsigned)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, int, kMaxSigned)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, unsigned, kAnd)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, unsigned, kOr)
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef CUDA_ON_CPU_REDUCE
