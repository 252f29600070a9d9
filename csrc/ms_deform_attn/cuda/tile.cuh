// Which items a block works on, and the sizes of the levels, both in shared memory.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>
#include <limits>

#include "../sampling.h"
#include "channels.cuh"
#include "problem.h"

namespace detrx::cuda {

template <typename C>
struct alignas(16) Level {
  int height, width, start;
  C scale_x, scale_y;  // see point_scale
};

struct alignas(16) Item {
  int64_t query;  // b * Q + q
  int head, image;
};

constexpr int kMaxLevels = 1024;  // for which there is room in any case
constexpr unsigned kSide = 8;     // of the squares of tokens that are worked on together

// At the beginning of a block's shared memory.
template <typename C>
struct Tile {
  Level<C>* levels;
  Item* items;

  static constexpr int bytes(int levels, int items) {
    return levels * sizeof(Level<C>) + items * sizeof(Item);
  }
  __device__ __forceinline__ Tile(char* memory, int levels)
      : levels(reinterpret_cast<Level<C>*>(memory)),
        items(reinterpret_cast<Item*>(memory + levels * sizeof(Level<C>))) {}
};

// What the host may not read without waiting for the device. No value is read before this has been checked.
template <typename T, typename C>
__device__ __forceinline__ void check_level(const DeformAttnInputs<T, C>& args, int l) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  const auto tokens = [&](int level) {
    return args.spatial_shapes[2 * level] * args.spatial_shapes[2 * level + 1];
  };
  const int64_t height = args.spatial_shapes[2 * l], width = args.spatial_shapes[2 * l + 1];
  const int64_t start = args.level_start_index[l];
  CUDA_KERNEL_ASSERT(
      height >= 0 && height <= limit && width >= 0 && width <= limit &&
      "ms_deform_attn: spatial_shapes has a negative or too large number");
  CUDA_KERNEL_ASSERT(
      start == (l == 0 ? 0 : args.level_start_index[l - 1] + tokens(l - 1)) &&
      "ms_deform_attn: level_start_index is not the number of tokens in the levels of spatial_shapes before");
  CUDA_KERNEL_ASSERT(
      (l + 1 < args.sizes.L || start + tokens(l) == args.sizes.S) &&
      "ms_deform_attn: the levels of spatial_shapes do not hold as many tokens as value");
}

template <typename T, typename C>
__device__ __forceinline__ Level<C> read_level(const DeformAttnInputs<T, C>& args, int l) {
  int height = static_cast<int>(args.spatial_shapes[2 * l]), width = static_cast<int>(args.spatial_shapes[2 * l + 1]);
  if (height == 0 || width == 0) {
    height = width = -1;  // no pixel is above -1 and below it: no point contributes
  }
  return {height, width, static_cast<int>(args.level_start_index[l]), point_scale<C>(width), point_scale<C>(height)};
}

// The query at a position of the order in which an image's queries are worked on. Where there are as many queries as
// tokens they usually are the tokens, as in an encoder. Then squares of them are neighbours and sample largely the same
// tokens: fewer cache lines are read, and fewer sums of gradients are left to global memory. Any order is correct.
template <typename T, typename C>
__device__ __forceinline__ int64_t query_at(const Problem<T, C>& problem, const Level<C>* levels, int64_t position) {
  const DeformAttnSizes& n = problem.args.sizes;
  if (n.Q != n.S) {
    return position;
  }
  int l = 0;
  while (l + 1 < n.L && position >= levels[l + 1].start) {
    ++l;
  }
  const unsigned height = levels[l].height, width = levels[l].width;
  unsigned rest = position - levels[l].start;
  const unsigned side = min(kSide, height);  // a strip is no larger than its level: its tokens are counted in 32 bits
  const unsigned strip = rest / (side * width);
  rest -= strip * side * width;
  const unsigned rows = min(kSide, height - strip * kSide);
  const unsigned square = rest / (kSide * rows);
  rest -= square * kSide * rows;
  const unsigned columns = min(kSide, width - square * kSide);
  const unsigned y = strip * kSide + rest / columns, x = square * kSide + rest % columns;
  return levels[l].start + y * width + x;
}

// Items in the order image, head, query: a block has neighbouring queries of one head, or of few.
template <typename T, typename C>
__device__ __forceinline__ Item item_at(const Problem<T, C>& problem, const Level<C>* levels, int64_t position) {
  const DeformAttnSizes& n = problem.args.sizes;
  int64_t head, image;
  if (problem.items <= std::numeric_limits<int32_t>::max()) {
    head = problem.queries.divide(position);
    image = problem.heads.divide(head);
  } else {
    head = position / n.Q;
    image = head / n.M;
  }
  const int64_t query = query_at(problem, levels, position - head * n.Q);
  return {image * n.Q + query, static_cast<int>(head - image * n.M), static_cast<int>(image)};
}

// Fills the tile with `count` items from `first` on, the last item repeated beyond the end.
template <typename T, typename C>
__device__ __forceinline__ void fill_tile(const Problem<T, C>& problem, int64_t first, int count, const Tile<C>& tile) {
  __syncthreads();  // the tile before has been read
  if (threadIdx.x < kWarp) {
    for (int l = threadIdx.x; l < problem.args.sizes.L; l += kWarp) {
      check_level(problem.args, l);
      tile.levels[l] = read_level(problem.args, l);
    }
    __syncwarp();
    for (int i = threadIdx.x; i < count; i += kWarp) {
      tile.items[i] = item_at(problem, tile.levels, min(first + i, problem.items - 1));
    }
  }
  __syncthreads();
}

}  // namespace detrx::cuda
