// Where the points of an item lie and how much they count, for all kernels alike.
#pragma once

#include <cmath>
#include <cstdint>

#include "../bilinear.h"
#include "../sampling.h"
#include "tile.cuh"

namespace detrx::cuda {

// What the operator was given for an item: its points, and their attention weights or logits.
template <typename T, typename C>
struct ItemInputs {
  const Pack<T, 2>* points;
  const T* weights;
  const C* reference;  // of level 0, null without one
  C maximum;           // of the logits

  // The attention weight of point i, where there is a reference only up to a factor: the numerator of a softmax.
  __device__ __forceinline__ C numerator(int i) const {
    const C stored = static_cast<C>(weights[i]);
    return reference ? exp_not_positive(stored - maximum) : stored;
  }
  // The factor, from the sum of all numerators.
  __device__ __forceinline__ C factor(C sum) const {
    return reference ? 1 / sum : 1;
  }
};

template <int kLanes, typename T, typename C>
__device__ __forceinline__ ItemInputs<T, C> inputs_of(const Problem<T, C>& problem, const Item& item, int lane) {
  const DeformAttnInputs<T, C>& args = problem.args;
  const int64_t first = (item.query * args.sizes.M + item.head) * problem.points;
  ItemInputs<T, C> inputs{
      reinterpret_cast<const Pack<T, 2>*>(args.points) + first, args.weights + first, nullptr, 0};
  if (args.reference) {
    inputs.reference = args.reference + item.query * args.sizes.L * args.reference_size;
    inputs.maximum = -static_cast<C>(INFINITY);
#pragma unroll 2
    for (int i = lane; i < problem.points; i += kLanes) {
      const C logit = static_cast<C>(inputs.weights[i]);
      inputs.maximum = logit > inputs.maximum ? logit : inputs.maximum;
    }
    inputs.maximum = group_maximum<kLanes>(inputs.maximum);
  }
  return inputs;
}

// The factor, for kernels that need it before they go through the points.
template <int kLanes, typename T, typename C>
__device__ __forceinline__ C attention_factor(const ItemInputs<T, C>& inputs, int points, int lane) {
  C sum = 0;
  if (inputs.reference) {
#pragma unroll 2
    for (int i = lane; i < points; i += kLanes) {
      sum += inputs.numerator(i);
    }
  }
  return inputs.factor(group_sum<kLanes>(sum));
}

// Where a point lies in its level.
template <typename C>
struct Pixel {
  C x, y;
  int level;
  bool contributes;
};

// Of point i of an item.
template <typename T, typename C>
__device__ __forceinline__ Pixel<C> pixel_of_point(
    const Problem<T, C>& problem, const Level<C>* levels, const ItemInputs<T, C>& inputs, int i) {
  const int size = problem.args.reference_size, l = problem.points_per_level.divide(i);
  const Level<C>& level = levels[l];
  const Pack<T, 2> stored = inputs.points[i];
  C x = static_cast<C>(stored.value[0]), y = static_cast<C>(stored.value[1]);
  if (inputs.reference) {
    const Pack<C, 2> centre = load<2>(inputs.reference + l * size);
    if (size == 2) {
      x = point_location(centre.value[0], x, level.scale_x);
      y = point_location(centre.value[1], y, level.scale_y);
    } else {
      const Pack<C, 2> extent = load<2>(inputs.reference + l * size + 2);
      x = box_location(centre.value[0], extent.value[0], x, problem.scale_of_boxes);
      y = box_location(centre.value[1], extent.value[1], y, problem.scale_of_boxes);
    }
  }
  x = pixel_of(x, level.width);
  y = pixel_of(y, level.height);
  return {x, y, l, contributes(x, level.width) && contributes(y, level.height)};
}

// The two pixels around a point along one axis. One outside the map is replaced by the other, so that it may be read,
// and has no weight. Only for points that contribute.
template <typename C>
struct Axis {
  int low, high;
  bool has_low, has_high;
  C distance;  // from the lower one, which may be -1

  __device__ __forceinline__ Axis(C pixel, int size) {
    const int before = floor_of(pixel);
    distance = pixel - static_cast<C>(before);
    has_low = before >= 0;
    has_high = before + 1 < size;
    low = max(before, 0);
    high = min(before + 1, size - 1);
  }
  __device__ __forceinline__ C low_weight() const {
    return has_low ? 1 - distance : 0;
  }
  __device__ __forceinline__ C high_weight() const {
    return has_high ? distance : 0;
  }
};

// Tokens of a point's corners, in the order of bilinear.h.
template <typename C>
__device__ __forceinline__ void corner_tokens(
    const Level<C>& level, const Axis<C>& x, const Axis<C>& y, unsigned (&tokens)[4]) {
  const unsigned top = level.start + y.low * level.width, bottom = level.start + y.high * level.width;
  tokens[0] = top + x.low;
  tokens[1] = top + x.high;
  tokens[2] = bottom + x.low;
  tokens[3] = bottom + x.high;
}

// What a point contributes to the tokens at (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1), where (y, x) is the
// first of its corners that lies in the map. Zero for tokens that are none of its corners.
template <typename C>
struct Footprint {
  int y = 0, x = 0;
  C weight[4] = {};

  __device__ __forceinline__ Footprint(const Pixel<C>& pixel, const Level<C>& level, C attention) {
    if (pixel.contributes) {
      const Axis<C> along_x(pixel.x, level.width), along_y(pixel.y, level.height);
      const bool has_right = along_x.has_low && along_x.has_high, has_bottom = along_y.has_low && along_y.has_high;
      const C left = along_x.has_low ? along_x.low_weight() : along_x.high_weight();
      const C top = attention * (along_y.has_low ? along_y.low_weight() : along_y.high_weight());
      const C bottom = attention * along_y.distance;
      y = along_y.low;
      x = along_x.low;
      // No products with zero where there is no corner: attention may be NaN.
      weight[0] = top * left;
      weight[1] = has_right ? top * along_x.distance : 0;
      weight[2] = has_bottom ? bottom * left : 0;
      weight[3] = has_right && has_bottom ? bottom * along_x.distance : 0;
    }
  }
};

}  // namespace detrx::cuda
