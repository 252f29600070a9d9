// What the kernels are given: the tensors, and numbers that the host prepares.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../reduced_float.h"
#include "../inputs.h"
#include "../sampling.h"

namespace detrx::cuda {

// Divides numbers below 2^31 by a positive one that is known on the host, in three instructions.
class Divisor {
 public:
  explicit Divisor(int64_t divisor) {
    divisor = std::min(divisor, int64_t(1) << 31);  // the quotient is 0 from there on
    while (int64_t(1) << shift_ < divisor) {
      ++shift_;
    }
    factor_ = static_cast<unsigned>((((int64_t(1) << shift_) - divisor) << 32) / divisor + 1);
  }
#if defined(__CUDACC__)
  __device__ __forceinline__ unsigned divide(unsigned x) const {
    return (__umulhi(x, factor_) + x) >> shift_;
  }
#endif

 private:
  unsigned factor_, shift_ = 0;
};

template <typename T, typename C>
struct Problem {
  DeformAttnInputs<T, C> args;
  int64_t items;  // B * Q * M
  int points;     // L * P, of an item
  Divisor queries, heads, points_per_level, points_per_item;
  C scale_of_boxes;  // see box_scale

  explicit Problem(const DeformAttnInputs<T, C>& args)
      : args(args),
        items(args.sizes.B * args.sizes.Q * args.sizes.M),
        points(static_cast<int>(args.sizes.L * args.sizes.P)),
        queries(args.sizes.Q),
        heads(args.sizes.M),
        points_per_level(args.sizes.P),
        points_per_item(points),
        scale_of_boxes(box_scale<C>(args.sizes.P)) {}
};

}  // namespace detrx::cuda
