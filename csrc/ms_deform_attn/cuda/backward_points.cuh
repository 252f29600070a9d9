// The points of an item in the backward pass: placed in shared memory, where their dot products are left, and then from
// these to the gradients of points, weights and reference.
#pragma once

#include <cstdint>

#include "../bilinear.h"
#include "../inputs.h"
#include "../sampling.h"
#include "points.cuh"

namespace detrx::cuda {

template <typename C>
struct alignas(16) BackwardPoint {
  unsigned row[4];  // of the corners, see HeadRows
  C dx, dy;         // see BilinearPoint
  C numerator;      // see ItemInputs
  int corners;      // bit k: corner k lies inside the map; from bit 4 on: the level

  __device__ __forceinline__ bool has(int k) const {
    return corners >> k & 1;
  }
  __device__ __forceinline__ bool has_any() const {
    return corners & kAllCorners;
  }
  __device__ __forceinline__ int level() const {
    return corners >> 4;
  }
};

// First the dot products of the output's gradient with the values at the corners, then what follows from them.
template <typename C>
union alignas(16) PointSums {
  C dots[4];
  PointGradient<C> gradient;
};

// What a group of lanes has in shared memory, behind the tile.
template <typename C>
struct SharedPoints {
  BackwardPoint<C>* points;
  PointSums<C>* sums;

  static constexpr int kBytes = sizeof(BackwardPoint<C>) + sizeof(PointSums<C>);
  __device__ __forceinline__ SharedPoints(char* memory, int group, int groups, int points_at_once)
      : points(reinterpret_cast<BackwardPoint<C>*>(memory) + group * points_at_once),
        sums(reinterpret_cast<PointSums<C>*>(memory + groups * points_at_once * sizeof(BackwardPoint<C>)) +
             group * points_at_once) {}
};

// Places points `begin` to `end` of an item, and returns the sum of the numerators of the lane's points.
template <typename T, typename C, int kChannels>
__device__ __forceinline__ C place_points(
    const Problem<T, C>& problem, const Level<C>* levels, const ItemInputs<T, C>& inputs, int lane, int begin, int end,
    const SharedPoints<C>& shared) {
  const int64_t elements_per_token = problem.args.sizes.M * problem.args.sizes.D;
  C sum = 0;
  for (int i = begin + lane; i < end; i += Layout<T, kChannels>::kGroup) {
    const Pixel<C> pixel = pixel_of_point(problem, levels, inputs, i);
    BackwardPoint<C> point{{0, 0, 0, 0}, 0, 0, inputs.numerator(i), pixel.level << 4};
    sum += point.numerator;
    if (pixel.contributes) {
      const Level<C>& level = levels[pixel.level];
      const Axis<C> x(pixel.x, level.width), y(pixel.y, level.height);
      unsigned tokens[4];
      corner_tokens(level, x, y, tokens);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        point.row[k] = row_of_token<T, kChannels>(tokens[k], elements_per_token);
      }
      point.dx = x.distance;
      point.dy = y.distance;
      point.corners |= (x.has_low | x.has_high << 1) * (y.has_low | y.has_high << 2);
    }
    shared.points[i - begin] = point;
  }
  return sum;
}

// From the dot products to the gradients of location and attention weight of the lane's points. Returns the sum of the
// latter times the numerators.
template <int kGroup, typename C>
__device__ __forceinline__ C differentiate_points(
    const Level<C>* levels, const SharedPoints<C>& shared, int count, int lane, C factor) {
  C sum = 0;
  for (int i = lane; i < count; i += kGroup) {
    const BackwardPoint<C> point = shared.points[i];
    PointSums<C>& sums = shared.sums[i];
    C dots[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      dots[k] = point.has(k) ? sums.dots[k] : 0;
    }
    const Level<C>& level = levels[point.level()];
    sums.gradient = point_gradient(
        dots[0], dots[1], dots[2], dots[3], point.dx, point.dy, point.numerator * factor, level.height, level.width);
    sum += point.numerator * sums.gradient.attention;
  }
  return sum;
}

// Gradients of what the operator was given, from those of locations and attention weights. `mean` is the sum over all
// points of the item of attention weight times its gradient.
template <int kGroup, typename T, typename C>
__device__ __forceinline__ void store_gradients(
    const Problem<T, C>& problem, const DeformAttnGradients<T, C>& grads, const Level<C>* levels,
    const ItemInputs<T, C>& inputs, int64_t index, const SharedPoints<C>& shared, int begin, int count, int lane,
    C factor, C mean) {
  const int size = problem.args.reference_size;
  const int64_t first = index * problem.points + begin;
  auto* grad_points = reinterpret_cast<Pack<T, 2>*>(grads.grad_points) + first;
#pragma unroll 1
  for (int i = lane; i < count; i += kGroup) {
    const BackwardPoint<C>& point = shared.points[i];
    const PointGradient<C> gradient = shared.sums[i].gradient;
    C x = gradient.x, y = gradient.y, weight = gradient.attention;
    if (inputs.reference) {
      weight = logit_gradient(point.numerator * factor, weight, mean);
      if (size == 2) {
        const Level<C>& level = levels[point.level()];
        x = point_offset_gradient(x, level.scale_x);
        y = point_offset_gradient(y, level.scale_y);
      } else {
        const Pack<C, 2> extent = load<2>(inputs.reference + point.level() * size + 2);
        x = box_offset_gradient(x, extent.value[0], problem.scale_of_boxes);
        y = box_offset_gradient(y, extent.value[1], problem.scale_of_boxes);
      }
    }
    grad_points[i] = {{static_cast<T>(x), static_cast<T>(y)}};
    grads.grad_weights[first + i] = static_cast<T>(weight);
  }
}

// Adds what `count` points from `begin` on contribute to the gradient of an item's reference. Every level has its lane.
template <int kGroup, typename T, typename C>
__device__ __forceinline__ void add_reference_gradient(
    const Problem<T, C>& problem, const ItemInputs<T, C>& inputs, C* grad_reference, const SharedPoints<C>& shared,
    int begin, int count, int lane) {
  const int size = problem.args.reference_size, per_level = problem.args.sizes.P, levels = problem.args.sizes.L;
  for (int l = lane; l < levels; l += kGroup) {
    C sum[4] = {};
    const int end = min((l + 1) * per_level, begin + count);
#pragma unroll 1
    for (int i = max(l * per_level, begin); i < end; ++i) {
      const PointGradient<C> gradient = shared.sums[i - begin].gradient;
      const Pack<T, 2> offset = inputs.points[i];
      sum[0] += gradient.x;
      sum[1] += gradient.y;
      sum[2] += box_extent_gradient(gradient.x, static_cast<C>(offset.value[0]), problem.scale_of_boxes);
      sum[3] += box_extent_gradient(gradient.y, static_cast<C>(offset.value[1]), problem.scale_of_boxes);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < size) {
        grad_reference[l * size + i] += sum[i];
      }
    }
  }
}

}  // namespace detrx::cuda
