// Gradients of points, weights and reference. Those of the values are added to as well where few points share their
// corners, with atomic operations for every corner.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "atomics.cuh"
#include "kernels.h"
#include "launch.h"
#include "points.cuh"
#include "tensor_cores.cuh"

namespace detrx {
namespace {

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

// Sums four numbers over the lanes of a group into `sums`, with as few shuffles as possible: every step halves what a
// lane still has to sum, as long as there is more than one number.
template <int kGroup, typename C>
__device__ __forceinline__ void group_sums(const C (&x)[4], int lane, C* sums) {
  const bool odd = lane & 1;
  const C first = (odd ? x[2] : x[0]) + __shfl_xor_sync(kAllLanes, odd ? x[0] : x[2], 1);
  const C second = (odd ? x[3] : x[1]) + __shfl_xor_sync(kAllLanes, odd ? x[1] : x[3], 1);
  if constexpr (kGroup == 2) {
    sums[2 * odd] = first;
    sums[2 * odd + 1] = second;
  } else {
    const bool upper = lane & 2;
    C sum = (upper ? second : first) + __shfl_xor_sync(kAllLanes, upper ? first : second, 2);
#pragma unroll
    for (int offset = 4; offset < kGroup; offset *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    if (lane < 4) {
      sums[2 * odd + upper] = sum;
    }
  }
}

template <typename T, int kChannels>
__device__ constexpr bool has_tensor_cores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return sizeof(T) == 2 && (kChannels == 32 || kChannels == 64);
#else
  return false;
#endif
}

// The dot products of one point, in its item's channels. `corner` and `grad` are the lane's channels.
//
// On tensor cores, row r of the first matrix is what lanes 4 * r to 4 * r + 3 have of a corner, and column r of the
// second one what they have of the gradient: so the dot products are on the diagonal. Of the 16 rows, 8 are for one
// corner and 8 for another. What is beside the diagonals is not used.
template <typename T, typename C, int kChannels, int kVector>
__device__ __forceinline__ void dot_products(
    const Channels<T, kVector> (&corner)[4], const Channels<T, kVector>& grad, int lane, C* dots) {
  constexpr int kGroup = Layout<T, kChannels>::kGroup;
  if constexpr (has_tensor_cores<T, kChannels>()) {
    uint32_t x[4][4], y[4];
    __builtin_memcpy(x, corner, sizeof(x));
    __builtin_memcpy(y, &grad, sizeof(y));
    float upper[4] = {}, lower[4] = {};  // corners 0 and 1, corners 2 and 3
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      multiply_add<T>(upper, {x[0][i], x[1][i], x[0][i + 1], x[1][i + 1]}, {y[i], y[i + 1]});
      multiply_add<T>(lower, {x[2][i], x[3][i], x[2][i + 1], x[3][i + 1]}, {y[i], y[i + 1]});
    }
    const int row = threadIdx.x % kWarp / 4;
    const bool odd = row % 2;
    Channels<float, 4> sums{
        {odd ? upper[1] : upper[0], odd ? upper[3] : upper[2], odd ? lower[1] : lower[0], odd ? lower[3] : lower[2]}};
    if constexpr (kGroup == 8) {  // an item has two rows
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums.at[k] += __shfl_xor_sync(kAllLanes, sums.at[k], 4);
      }
    }
    if (threadIdx.x % 4 == row / 2 && (kGroup == 4 || !odd)) {
      *reinterpret_cast<Channels<float, 4>*>(dots) = sums;
    }
  } else {
    C partial[4] = {}, widened_grad[kVector];
    widen(grad, widened_grad);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      C widened[kVector];
      widen(corner[k], widened);
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        partial[k] += widened_grad[c] * widened[c];
      }
    }
    group_sums<kGroup>(partial, lane, dots);
  }
}

// Adds an item's contribution to the gradient of the values.
template <typename T, typename C, int kChannels>
class ValueGradient {
 public:
  static constexpr int kVector = Layout<T, kChannels>::kVector;
  typedef RowSums<C, Layout<T, kChannels>::kGroup, kVector> Sums;

  // `head` is the gradient of token 0.
  __device__ __forceinline__ ValueGradient(C* head, int64_t elements_per_token, int lane)
      : rows_(head + lane * Sums::kWidth, elements_per_token), lane_(lane) {}

  // `grad_output` is that of the item, `factor` that of its numerators.
  __device__ __forceinline__ void read(const T* grad_output, C factor) {
    Sums::read(grad_output + lane_ * Sums::kWidth, grad_);
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      grad_[c] *= factor;
    }
  }
  __device__ __forceinline__ void add(const BackwardPoint<C>& point, int64_t channel = 0) const {
    if (!point.has_any()) {
      return;
    }
    const CornerWeights<C> weights = corner_weights(point.dx, point.dy);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      // For a corner outside the map zero times the gradient is added, to the corner in its place.
      const C weight = point.has(k) ? weights.w[k] * point.numerator : 0;
      C terms[kVector];
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        terms[c] = weight * grad_[c];
      }
      Sums::add(rows_.at(point.row[k], channel), terms);
    }
  }

 private:
  HeadRows<T, kChannels, C> rows_;
  int lane_;
  C grad_[kVector];
};

// The loop over the placed points of an item, in which most time is spent: leaves their dot products, and adds to the
// gradient of the values if `add` says so. All four corners are loaded before the first is used, so that many loads are
// under way at a time.
template <bool kValues, typename T, typename C, int kChannels>
__device__ __forceinline__ void visit_corners(
    const HeadRows<T, kChannels, const T>& rows, const T* grad_output, ValueGradient<T, C, kChannels>& value_gradient,
    const SharedPoints<C>& shared, int count, int lane, bool add, C factor) {
  constexpr int kVector = Layout<T, kChannels>::kVector;
  const Channels<T, kVector> grad = load<kVector>(grad_output + lane * kVector);
  if constexpr (kValues) {
    value_gradient.read(grad_output, factor);
  }
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    const BackwardPoint<C> point = shared.points[i];
    Channels<T, kVector> corner[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      corner[k] = load<kVector>(rows.at(point.row[k]));
    }
    dot_products<T, C, kChannels>(corner, grad, lane, shared.sums[i].dots);
    if (kValues && add) {
      value_gradient.add(point);
    }
  }
}

// The same for any number of channels.
template <bool kValues, typename T, typename C>
__device__ __forceinline__ void visit_corners(
    const HeadRows<T, 0, const T>& rows, const T* grad_output, ValueGradient<T, C, 0>& value_gradient,
    const SharedPoints<C>& shared, int count, int lane, bool add, C factor, int64_t channels) {
  for (int i = 0; i < count; ++i) {
    const BackwardPoint<C> point = shared.points[i];
    C partial[4] = {};
    for (int64_t channel = 0; channel + lane < channels; channel += kWarp) {
      const C grad = static_cast<C>(grad_output[channel + lane]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        partial[k] += grad * static_cast<C>(*rows.at(point.row[k], channel));
      }
      if (kValues && add) {
        value_gradient.read(grad_output + channel, factor);
        value_gradient.add(point, channel);
      }
    }
    group_sums<kWarp>(partial, lane, shared.sums[i].dots);
  }
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
  auto* grad_points = reinterpret_cast<Channels<T, 2>*>(grads.grad_points) + first;
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
        const Channels<C, 2> extent = load<2>(inputs.reference + point.level() * size + 2);
        x = box_offset_gradient(x, extent.at[0], problem.scale_of_boxes);
        y = box_offset_gradient(y, extent.at[1], problem.scale_of_boxes);
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
      const Channels<T, 2> offset = inputs.points[i];
      sum[0] += gradient.x;
      sum[1] += gradient.y;
      sum[2] += box_extent_gradient(gradient.x, static_cast<C>(offset.at[0]), problem.scale_of_boxes);
      sum[3] += box_extent_gradient(gradient.y, static_cast<C>(offset.at[1]), problem.scale_of_boxes);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < size) {
        grad_reference[l * size + i] += sum[i];
      }
    }
  }
}

template <typename T, typename C, int kChannels, bool kValues>
__global__ void __launch_bounds__(kThreads, kBlocks<C>)
backward_kernel(const Problem<T, C> problem, const DeformAttnGradients<T, C> grads, int points_at_once) {
  constexpr int kVector = Layout<T, kChannels>::kVector, kGroup = Layout<T, kChannels>::kGroup;
  extern __shared__ __align__(16) char memory[];
  const DeformAttnSizes& n = problem.args.sizes;
  const Place<kGroup> place;
  const Tile<C> tile(memory, n.L);
  const SharedPoints<C> shared(
      memory + Tile<C>::bytes(n.L, place.groups), place.group, place.groups, points_at_once);
  const bool in_parts = points_at_once < problem.points;
  for (int64_t first = int64_t(blockIdx.x) * place.groups; first < problem.items;
       first += int64_t(gridDim.x) * place.groups) {
    fill_tile(problem, first, place.groups, tile);
    const bool active = first + place.group < problem.items;
    const Item item = tile.items[place.group];
    const int64_t index = item.query * n.M + item.head, head = (item.image * n.S * n.M + item.head) * n.D;
    const ItemInputs<T, C> inputs = inputs_of<kGroup>(problem, item, place.lane);
    const HeadRows<T, kChannels, const T> rows(problem.args.value + head + place.lane * kVector, n.M * n.D);
    ValueGradient<T, C, kChannels> value_gradient(grads.grad_value + head, n.M * n.D, place.lane);
    C factor = 1, mean = 0;
    // A softmax and its gradient need sums over all points first. Where shared memory does not hold all of them, these
    // sums are a pass of their own.
    for (int pass = in_parts && inputs.reference ? 0 : 1; pass < 2; ++pass) {
      const bool store = active && pass == 1;
      C numerators = 0, products = 0;
      for (int begin = 0; begin < problem.points; begin += points_at_once) {
        const int count = min(points_at_once, problem.points - begin);
        // No barrier: since the last one, lanes have read no other points than those that they place here.
        numerators +=
            place_points<T, C, kChannels>(problem, tile.levels, inputs, place.lane, begin, begin + count, shared);
        if (!in_parts) {
          factor = inputs.factor(group_sum<kGroup>(numerators));
        }
        __syncwarp();
        const T* grad_output = grads.grad_output + index * n.D;
        if constexpr (kChannels) {
          visit_corners<kValues>(rows, grad_output, value_gradient, shared, count, place.lane, store, factor);
        } else {
          visit_corners<kValues>(rows, grad_output, value_gradient, shared, count, place.lane, store, factor, n.D);
        }
        __syncwarp();
        products += differentiate_points<kGroup>(tile.levels, shared, count, place.lane, factor);
        if (!in_parts) {
          mean = factor * group_sum<kGroup>(products);
        }
        __syncwarp();
        if (store) {
          store_gradients<kGroup>(
              problem, grads, tile.levels, inputs, index, shared, begin, count, place.lane, factor, mean);
          if (grads.grad_reference) {
            C* grad_reference = grads.grad_reference + index * n.L * problem.args.reference_size;
            add_reference_gradient<kGroup>(problem, inputs, grad_reference, shared, begin, count, place.lane);
          }
        }
      }
      if (pass == 0) {
        factor = inputs.factor(group_sum<kGroup>(numerators));
        mean = factor * group_sum<kGroup>(products);
      }
    }
  }
}

}  // namespace

template <typename T>
void backward_on_cuda(
    const DeformAttnInputs<T, Compute<T>>& args, const DeformAttnGradients<T, Compute<T>>& grads, bool values) {
  typedef Compute<T> C;
  const Problem<T, C> problem(args);
  for_channels<T>(args.sizes, [&](auto channels) {
    constexpr int kChannels = decltype(channels)::value;
    const Launch launch = plan(problem, Layout<T, kChannels>::kGroup, SharedPoints<C>::kBytes);
    const auto kernel = values ? &backward_kernel<T, C, kChannels, true> : &backward_kernel<T, C, kChannels, false>;
    kernel<<<launch.blocks, launch.threads, launch.shared_memory, c10::cuda::getCurrentCUDAStream()>>>(
        problem, grads, launch.points);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

#define DETRX_INSTANTIATE(T)         \
  template void backward_on_cuda<T>( \
      const DeformAttnInputs<T, Compute<T>>&, const DeformAttnGradients<T, Compute<T>>&, bool);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx
