// Where the fused operator samples and how it weighs the samples, for CPU and CUDA alike: sampling locations from
// reference points or boxes and raw offsets, attention weights from logits, and the gradients of both.
//
//   points  location = reference + offset / size of the level      offsets in pixels
//   boxes   location = centre + offset / P * extent / 2            offsets in half boxes over P
#pragma once

#include "../macros.h"
#include "../reduced_float.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <cmath>
#endif

namespace detrx {

// What offsets are multiplied by, as the number of pixels or points is the same for many of them.
template <typename T, typename Integer>
DETRX_HOST_DEVICE T point_scale(Integer size) {
  // A level without pixels contributes nothing, and must not give 0 / 0.
  return 1 / static_cast<T>(size > 1 ? size : 1);
}

template <typename T, typename Integer>
DETRX_HOST_DEVICE T box_scale(Integer points) {
  return static_cast<T>(0.5) / static_cast<T>(points);
}

template <typename T>
DETRX_HOST_DEVICE T point_location(T reference, T offset, T scale) {
  return reference + offset * scale;
}

template <typename T>
DETRX_HOST_DEVICE T box_location(T centre, T extent, T offset, T scale) {
  return centre + offset * scale * extent;
}

// Gradients, from that of the location. The one of the reference point or the centre is the same as the location's.
template <typename T>
DETRX_HOST_DEVICE T point_offset_gradient(T grad_location, T scale) {
  return grad_location * scale;
}

template <typename T>
DETRX_HOST_DEVICE T box_offset_gradient(T grad_location, T extent, T scale) {
  return grad_location * scale * extent;
}

template <typename T>
DETRX_HOST_DEVICE T box_extent_gradient(T grad_location, T offset, T scale) {
  return grad_location * (offset * scale);
}

// `mean` is the sum over all points of weight times gradient.
template <typename T>
DETRX_HOST_DEVICE T logit_gradient(T weight, T grad_weight, T mean) {
  return weight * (grad_weight - mean);
}

// exp(x) for x <= 0, the numerator of a softmax; NaN stays NaN.
DETRX_HOST_DEVICE double exp_not_positive(double x) {
#if defined(__CUDACC__)
  return ::exp(x);
#else
  return __builtin_exp(x);
#endif
}

DETRX_HOST_DEVICE float exp_not_positive(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  // exp(x) = 2^n exp(r) with |r| <= log(2) / 2. Adding 1.5 * 2^23 rounds to an integer, whose bits are the last ones.
  // Taylor's polynomial of degree 7 has an error below 1e-8 there.
  const float lowest = -87.0f;
  const float safe = x < lowest ? lowest : x;
  const float shifted = safe * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (safe - n * 0.693359375f) + n * 2.12194440e-4f;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const float result = float_from_bits(float_bits(sum) + (float_bits(shifted) << 23));
  return x < lowest ? 0.0f : result;
#endif
}

}  // namespace detrx
