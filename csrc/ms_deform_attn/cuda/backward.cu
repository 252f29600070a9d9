// Gradients of points, weights and reference. Those of the values are added to as well where few points share their
// corners, with atomic operations for every corner.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "atomics.cuh"
#include "backward_points.cuh"
#include "dot_products.cuh"
#include "kernels.h"
#include "launch.h"
#include "points.cuh"

namespace detrx::cuda {
namespace {

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
  const Pack<T, kVector> grad = load<kVector>(grad_output + lane * kVector);
  if constexpr (kValues) {
    value_gradient.read(grad_output, factor);
  }
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    const BackwardPoint<C> point = shared.points[i];
    Pack<T, kVector> corner[4];
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
void backward(
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
  template void backward<T>( \
      const DeformAttnInputs<T, Compute<T>>&, const DeformAttnGradients<T, Compute<T>>&, bool);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cuda
