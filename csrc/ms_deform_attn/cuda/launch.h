// How kernels are launched: host code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../../cuda/warps.cuh"
#include "tile.cuh"

namespace detrx::cuda {

constexpr int kFewThreads = 64;  // of a block, where larger blocks would not reach every multiprocessor
constexpr int64_t kManyThreads = 256 * kThreads;
constexpr int kSharedMemory = 48 * 1024;  // what every device gives a block

// Blocks that a multiprocessor is to have registers for: 80 a thread, and enough blocks to wait for memory.
template <typename C>
constexpr int kBlocks = sizeof(C) == sizeof(double) ? 2 : 3;

inline int blocks(int64_t count, int64_t per_block) {
  return static_cast<int>(
      std::min<int64_t>((count + per_block - 1) / per_block, std::numeric_limits<int32_t>::max()));
}

// Of kernels that work on items in groups of lanes and keep their points in shared memory, behind a tile.
struct Launch {
  int blocks, threads, shared_memory;
  int points;  // of an item at a time: all of them, if there is room
};

template <typename T, typename C>
Launch plan(const Problem<T, C>& problem, int group, int bytes_per_point) {
  int threads = problem.items * group >= kManyThreads ? kThreads : kFewThreads;
  const auto bytes = [&](int64_t points) {
    return Tile<C>::bytes(problem.args.sizes.L, threads / group) + threads / group * points * bytes_per_point;
  };
  while (threads > kWarp && bytes(problem.points) > kSharedMemory) {
    threads /= 2;
  }
  const int64_t room = (kSharedMemory - bytes(0)) / (threads / group * bytes_per_point);
  const int64_t points = std::min<int64_t>(problem.points, room);
  return {blocks(problem.items, threads / group), threads, static_cast<int>(bytes(points)), static_cast<int>(points)};
}

// Calls `function` with the number of channels that kernels are specialised for, 0 for any.
template <typename T, typename Function>
void for_channels(const DeformAttnSizes& n, const Function& function) {
  // Specialised kernels count the vectors of an image in 32 bits (HeadRows).
  const int64_t vectors = n.S * n.M * n.D / (16 / int64_t(sizeof(T)));
  switch (vectors <= std::numeric_limits<uint32_t>::max() ? n.D : 0) {
    case 16:
      return function(std::integral_constant<int, 16>());
    case 32:
      return function(std::integral_constant<int, 32>());
    case 64:
      return function(std::integral_constant<int, 64>());
    default:
      return function(std::integral_constant<int, 0>());
  }
}

}  // namespace detrx::cuda
