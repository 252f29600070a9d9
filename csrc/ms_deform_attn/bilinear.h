// The arithmetic of multi-scale deformable attention at one sampling point, for CPU and CUDA alike.
//
// A location in [0, 1] maps to pixel coordinates by x = location * width - 0.5 (align_corners=False). Pixels outside the
// map are zero. The four corners around a point are numbered 0 (y, x), 1 (y, x+1), 2 (y+1, x), 3 (y+1, x+1).
#pragma once

#include "../macros.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace detrx {

template <typename T>
struct BilinearPoint {
  int x, y;     // top-left corner, may be -1
  T dx, dy;     // distance from it, in [0, 1)
  int corners;  // bit k: corner k lies inside the map; 0 if the point contributes nothing
};

constexpr int kAllCorners = 15;

template <typename T>
DETRX_HOST_DEVICE T pixel_of(T location, int size) {
  return location * static_cast<T>(size) - static_cast<T>(0.5);
}

// A point contributes if -1 < x < width and -1 < y < height; NaN does not.
template <typename T>
DETRX_HOST_DEVICE bool contributes(T pixel, int size) {
  return (pixel > static_cast<T>(-1)) & (pixel < static_cast<T>(size));
}

// Of a pixel that contributes.
template <typename T>
DETRX_HOST_DEVICE int floor_of(T pixel) {
#if defined(__CUDA_ARCH__)
  return static_cast<int>(::floor(pixel));  // one instruction
#else
  // The conversion to int rounds towards zero; one less for negative fractions makes it the floor.
  const int truncated = static_cast<int>(pixel);
  return truncated - (static_cast<T>(truncated) > pixel);
#endif
}

template <typename T>
DETRX_HOST_DEVICE BilinearPoint<T> locate(T location_x, T location_y, int height, int width) {
  const T x = pixel_of(location_x, width);
  const T y = pixel_of(location_y, height);
  const bool inside = contributes(x, width) & contributes(y, height);
  const T safe_x = inside ? x : static_cast<T>(0);
  const T safe_y = inside ? y : static_cast<T>(0);
  BilinearPoint<T> point;
  point.x = floor_of(safe_x);
  point.y = floor_of(safe_y);
  point.dx = safe_x - static_cast<T>(point.x);
  point.dy = safe_y - static_cast<T>(point.y);
  const int left = point.x >= 0, right = point.x + 1 < width;
  const int top = point.y >= 0, bottom = point.y + 1 < height;
  point.corners = inside ? (top & left) | ((top & right) << 1) | ((bottom & left) << 2) | ((bottom & right) << 3) : 0;
  return point;
}

template <typename T>
struct CornerWeights {
  T w[4];
};

template <typename T>
DETRX_HOST_DEVICE CornerWeights<T> corner_weights(T dx, T dy) {
  const T one = static_cast<T>(1);
  return {{(one - dy) * (one - dx), (one - dy) * dx, dy * (one - dx), dy * dx}};
}

template <typename T>
struct PointGradient {
  T x, y;       // with respect to the location in [0, 1]
  T attention;  // with respect to the attention weight
};

// a + t * (b - a): unlike a sum of two products, compilers fuse it in one way only, so that vectorised code and the
// scalar rest of its loop round alike.
template <typename T>
DETRX_HOST_DEVICE T interpolate(T a, T b, T t) {
  return a + t * (b - a);
}

// `dots[k]` is the dot product of the output gradient with the value at corner k, 0 for a corner outside the map.
template <typename T>
DETRX_HOST_DEVICE PointGradient<T> point_gradient(
    T dot0, T dot1, T dot2, T dot3, T dx, T dy, T attention, int height, int width) {
  PointGradient<T> gradient;
  gradient.x = attention * static_cast<T>(width) * interpolate(dot1 - dot0, dot3 - dot2, dy);
  gradient.y = attention * static_cast<T>(height) * interpolate(dot2 - dot0, dot3 - dot1, dx);
  gradient.attention = interpolate(interpolate(dot0, dot1, dx), interpolate(dot2, dot3, dx), dy);
  return gradient;
}

}  // namespace detrx
