// The output: sums of samples.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels.h"
#include "launch.h"
#include "points.cuh"

namespace detrx::cuda {
namespace {

template <typename C>
struct alignas(16) ForwardPoint {
  C weight[4];
  unsigned row[4];  // of the corners, see HeadRows
};

// Leaves points `begin` to `end` of an item in shared memory, except those that lie outside of their maps, and returns
// how many there are. The numerators of all the lane's points are added to `sum`.
template <typename T, typename C, int kChannels>
__device__ __forceinline__ int place_points(
    const Problem<T, C>& problem, const Level<C>* levels, const ItemInputs<T, C>& inputs, int lane, int begin, int end,
    ForwardPoint<C>* points, C& sum) {
  constexpr int kGroup = Layout<T, kChannels>::kGroup;
  constexpr unsigned kGroupLanes = kAllLanes >> (kWarp - kGroup);
  const int64_t elements_per_token = problem.args.sizes.M * problem.args.sizes.D;
  int placed = 0;
  for (int first = begin; first < end; first += kGroup) {
    const bool valid = first + lane < end;
    const int i = valid ? first + lane : begin;
    const Pixel<C> pixel = pixel_of_point(problem, levels, inputs, i);
    const C numerator = inputs.numerator(i);
    sum += valid ? numerator : 0;
    const bool inside = valid && pixel.contributes;
    const unsigned group_shift = threadIdx.x % kWarp - lane;
    const unsigned all_inside = __ballot_sync(kAllLanes, inside) >> group_shift & kGroupLanes;
    if (inside) {
      ForwardPoint<C>& point = points[placed + __popc(all_inside & ((1u << lane) - 1))];
      const Level<C>& level = levels[pixel.level];
      const Axis<C> x(pixel.x, level.width), y(pixel.y, level.height);
      const C top = y.low_weight() * numerator, bottom = y.high_weight() * numerator;
      point.weight[0] = top * x.low_weight();
      point.weight[1] = top * x.high_weight();
      point.weight[2] = bottom * x.low_weight();
      point.weight[3] = bottom * x.high_weight();
      unsigned tokens[4];
      corner_tokens(level, x, y, tokens);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        point.row[k] = row_of_token<T, kChannels>(tokens[k], elements_per_token);
      }
    }
    placed += __popc(all_inside);
  }
  return placed;
}

// All four corners are loaded before the first is used, so that many loads are under way at a time.
template <typename T, typename C, int kChannels, int kVector>
__device__ __forceinline__ void add_samples(
    const HeadRows<T, kChannels, const T>& rows, int64_t channel, const ForwardPoint<C>* points, int count,
    C (&sum)[kVector]) {
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    const ForwardPoint<C> point = points[i];
    Pack<T, kVector> corner[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      corner[k] = load<kVector>(rows.at(point.row[k], channel));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      C widened[kVector];
      widen(corner[k], widened);
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        sum[c] += point.weight[k] * widened[c];
      }
    }
  }
}

template <typename T, typename C, int kVector>
__device__ __forceinline__ void store(T* target, const C (&sum)[kVector], C factor) {
  Pack<T, kVector> result;
#pragma unroll
  for (int c = 0; c < kVector; ++c) {
    result.value[c] = static_cast<T>(sum[c] * factor);
  }
  *reinterpret_cast<Pack<T, kVector>*>(target) = result;
}

template <typename T, typename C, int kChannels>
__global__ void __launch_bounds__(kThreads, kBlocks<C>)
forward_kernel(const Problem<T, C> problem, T* __restrict__ output, int points_at_once) {
  constexpr int kVector = Layout<T, kChannels>::kVector, kGroup = Layout<T, kChannels>::kGroup;
  extern __shared__ __align__(16) char memory[];
  const DeformAttnSizes& n = problem.args.sizes;
  const Place<kGroup> place;
  const Tile<C> tile(memory, n.L);
  ForwardPoint<C>* points =
      reinterpret_cast<ForwardPoint<C>*>(memory + Tile<C>::bytes(n.L, place.groups)) + place.group * points_at_once;
  const int64_t channels = kChannels ? kChannels : n.D;
  for (int64_t first = int64_t(blockIdx.x) * place.groups; first < problem.items;
       first += int64_t(gridDim.x) * place.groups) {
    fill_tile(problem, first, place.groups, tile);
    const bool active = first + place.group < problem.items;
    const Item item = tile.items[place.group];
    const ItemInputs<T, C> inputs = inputs_of<kGroup>(problem, item, place.lane);
    const HeadRows<T, kChannels, const T> rows(
        problem.args.value + (item.image * n.S * n.M + item.head) * n.D + place.lane * kVector, n.M * n.D);
    T* item_output = output + (item.query * n.M + item.head) * n.D + place.lane * kVector;
    int placed = 0;
    C factor = 0;
    for (int64_t channel = 0; channel < channels; channel += kGroup * kVector) {
      const bool has_channels = kChannels || channel + place.lane < channels;
      C sum[kVector] = {}, numerators = 0;
      for (int begin = 0; begin < problem.points; begin += points_at_once) {
        if (channel == 0 || points_at_once < problem.points) {
          const int end = min(begin + points_at_once, problem.points);
          __syncwarp();  // the points before have been read
          placed = place_points<T, C, kChannels>(
              problem, tile.levels, inputs, place.lane, begin, end, points, numerators);
          __syncwarp();
        }
        if (has_channels) {
          add_samples(rows, channel, points, placed, sum);
        }
      }
      if (channel == 0) {
        factor = inputs.factor(group_sum<kGroup>(numerators));
      }
      if (active && has_channels) {
        store(item_output + channel, sum, factor);
      }
    }
  }
}

}  // namespace

template <typename T>
void forward(const DeformAttnInputs<T, Compute<T>>& args, T* output) {
  typedef Compute<T> C;
  const Problem<T, C> problem(args);
  for_channels<T>(args.sizes, [&](auto channels) {
    constexpr int kChannels = decltype(channels)::value;
    const Launch launch = plan(problem, Layout<T, kChannels>::kGroup, sizeof(ForwardPoint<C>));
    forward_kernel<T, C, kChannels>
        <<<launch.blocks, launch.threads, launch.shared_memory, c10::cuda::getCurrentCUDAStream()>>>(
            problem, output, launch.points);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

#define DETRX_INSTANTIATE(T) template void forward<T>(const DeformAttnInputs<T, Compute<T>>&, T*);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cuda
