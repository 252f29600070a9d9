// What a thread of the CPU kernels works with beside the tensors: a table of the levels, and memory.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../../cpu/isa.h"
#include "../inputs.h"
#include "../sampling.h"

namespace detrx::cpu {

// Of the level that each of a query's L * P points samples: height, width, first token, and the two scales of
// offsets, x and y in turn.
template <typename C>
struct LevelTable {
  const int32_t* height;
  const int32_t* width;
  const int32_t* start;
  const C* scale_xy;
};

template <typename C>
class LevelTableStorage {
 public:
  LevelTableStorage(const DeformAttnSizes& n, const int64_t* spatial_shapes, const int64_t* level_start_index) {
    for (int64_t i = 0; i < n.L * n.P; ++i) {
      const int64_t height = spatial_shapes[2 * (i / n.P)], width = spatial_shapes[2 * (i / n.P) + 1];
      heights_.push_back(static_cast<int32_t>(height));
      widths_.push_back(static_cast<int32_t>(width));
      starts_.push_back(static_cast<int32_t>(level_start_index[i / n.P]));
      scales_xy_.push_back(point_scale<C>(width));
      scales_xy_.push_back(point_scale<C>(height));
    }
  }
  LevelTable<C> table() const {
    return {heights_.data(), widths_.data(), starts_.data(), scales_xy_.data()};
  }

 private:
  std::vector<int32_t> heights_, widths_, starts_;
  std::vector<C> scales_xy_;
};

// Memory of one thread. Arrays over the L * P points of a query and head, x and y in turn where they are twice as long.
template <typename T, typename C>
struct Workspace {
  const T* zeros;     // (D,), what corners outside the map read
  C* unused;          // (4, D), where they add their gradient
  C* output;          // (D,), or its gradient
  C* centres;         // of the query's reference, spread over the points
  C* extents;
  C* locations;       // of all heads
  C* weights;         // of all heads, padded(L * P) for each
  C* grad_locations;
  C* grad_weights;
};

// The softmax works on whole vectors, of at most 16 elements.
DETRX_INLINE int64_t padded(int64_t count) {
  return (count + 15) / 16 * 16;
}

template <typename T, typename C>
class WorkspaceStorage {
 public:
  explicit WorkspaceStorage(const DeformAttnSizes& n) : zeros_(n.D) {
    const int64_t points = padded(n.L * n.P), all_points = n.M * points;
    numbers_.resize(5 * n.D + 7 * points + 3 * all_points);
    C* next = numbers_.data();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    workspace_ = {zeros_.data(),        take(4 * n.D),    take(n.D),        take(2 * points), take(2 * points),
                  take(2 * all_points), take(all_points), take(2 * points), take(points)};
  }
  const Workspace<T, C>& get() const {
    return workspace_;
  }

 private:
  std::vector<T> zeros_;
  std::vector<C> numbers_;
  Workspace<T, C> workspace_;
};

}  // namespace detrx::cpu
