// The gradient of the values with the same bits every time. Points are sorted by their first corner; then every token
// sums over the points that it is a corner of, in their order.

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>
#include <tuple>

#include "kernels.h"
#include "launch.h"
#include "points.cuh"

namespace detrx::cuda {
namespace {

constexpr int kLanes = 16;  // that share the points of an item

// Of every point, the row (b * S + token) * M + m of the first corner, B * S * M if it has none, and four weights.
template <typename T, typename C, typename Row>
__global__ void __launch_bounds__(kThreads, kBlocks<C>)
list_kernel(const Problem<T, C> problem, Row* __restrict__ rows, Pack<C, 4>* __restrict__ weights) {
  extern __shared__ __align__(16) char memory[];
  const DeformAttnSizes& n = problem.args.sizes;
  const Place<kLanes> place;
  const Tile<C> tile(memory, n.L);
  for (int64_t first = int64_t(blockIdx.x) * place.groups; first < problem.items;
       first += int64_t(gridDim.x) * place.groups) {
    fill_tile(problem, first, place.groups, tile);
    const Item item = tile.items[place.group];
    const ItemInputs<T, C> inputs = inputs_of<kLanes>(problem, item, place.lane);
    const C factor = attention_factor<kLanes>(inputs, problem.points, place.lane);
    if (first + place.group < problem.items) {
      const int64_t first_point = (item.query * n.M + item.head) * problem.points;
      for (int i = place.lane; i < problem.points; i += kLanes) {
        const Pixel<C> pixel = pixel_of_point(problem, tile.levels, inputs, i);
        const Level<C>& level = tile.levels[pixel.level];
        const Footprint<C> footprint(pixel, level, inputs.numerator(i) * factor);
        const int64_t token = level.start + int64_t(footprint.y) * level.width + footprint.x;
        const int64_t row = pixel.contributes ? (item.image * n.S + token) * n.M + item.head : n.B * n.S * n.M;
        rows[first_point + i] = static_cast<Row>(row);
        weights[first_point + i] = {
            {footprint.weight[0], footprint.weight[1], footprint.weight[2], footprint.weight[3]}};
      }
    }
  }
}

template <typename T, typename C>
__device__ __forceinline__ int64_t item_of_point(const Problem<T, C>& problem, int64_t point) {
  return point <= std::numeric_limits<int32_t>::max() ? problem.points_per_item.divide(point) : point / problem.points;
}

// The points whose first corner is row r are `order[starts[r]]` to `order[starts[r + 1] - 1]`. A warp sums for a row, a
// channel per lane at a time.
template <typename T, typename C>
__global__ void __launch_bounds__(kThreads) gather_kernel(
    const Problem<T, C> problem, const int64_t* __restrict__ starts, const int64_t* __restrict__ order,
    const Pack<C, 4>* __restrict__ weights, const T* __restrict__ grad_output, C* __restrict__ grad_value) {
  const DeformAttnInputs<T, C>& args = problem.args;
  const DeformAttnSizes& n = args.sizes;
  const Place<kWarp> place;
  const int64_t rows = n.B * n.S * n.M;
  for (int64_t row = int64_t(blockIdx.x) * place.groups + place.group; row < rows;
       row += int64_t(gridDim.x) * place.groups) {
    const int64_t token = row / n.M % n.S;
    int l = 0;
    while (l + 1 < n.L && token >= args.level_start_index[l + 1]) {
      ++l;
    }
    const int64_t width = args.spatial_shapes[2 * l + 1], in_level = token - args.level_start_index[l];
    for (int64_t channel = place.lane; channel < n.D; channel += kWarp) {
      C sum = 0;
      for (int k = 0; k < 4; ++k) {  // the points of which it is corner k
        const int right = k % 2, down = k / 2;
        if (in_level % width < right || in_level / width < down) {
          continue;
        }
        const int64_t first_corner = row - (down * width + right) * n.M;
        const int64_t end = starts[first_corner + 1];
#pragma unroll 4
        for (int64_t i = starts[first_corner]; i < end; ++i) {
          const int64_t point = order[i];
          sum += weights[point].value[k] * static_cast<C>(grad_output[item_of_point(problem, point) * n.D + channel]);
        }
      }
      grad_value[row * n.D + channel] = sum;
    }
  }
}

template <typename Row, typename T>
void fill(
    const DeformAttnInputs<T, Compute<T>>& args, const T* grad_output, at::Tensor& grad_value, at::ScalarType key) {
  typedef Compute<T> C;
  const Problem<T, C> problem(args);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t points = problem.items * problem.points, rows = args.sizes.B * args.sizes.S * args.sizes.M;
  const auto keys = grad_value.options().dtype(key);
  const at::Tensor row_of_point = at::empty({points}, keys);
  const at::Tensor weights = at::empty({points, 4}, grad_value.options());
  auto* weights_of_point = reinterpret_cast<Pack<C, 4>*>(weights.mutable_data_ptr<C>());
  constexpr int kItems = kThreads / kLanes;
  list_kernel<T, C, Row><<<blocks(problem.items, kItems), kThreads, Tile<C>::bytes(args.sizes.L, kItems), stream>>>(
      problem, row_of_point.mutable_data_ptr<Row>(), weights_of_point);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const auto [sorted, order] = at::sort(row_of_point, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor starts = at::searchsorted(sorted, at::arange(rows + 1, keys));
  gather_kernel<T, C><<<blocks(rows, kThreads / kWarp), kThreads, 0, stream>>>(
      problem, starts.const_data_ptr<int64_t>(), order.template const_data_ptr<int64_t>(), weights_of_point,
      grad_output, grad_value.mutable_data_ptr<C>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

template <typename T>
void deterministic_grad_value(
    const DeformAttnInputs<T, Compute<T>>& args, const T* grad_output, at::Tensor& grad_value) {
  // Keys of half the size are sorted in half the time.
  if (args.sizes.B * args.sizes.S * args.sizes.M < std::numeric_limits<int32_t>::max()) {
    fill<int32_t>(args, grad_output, grad_value, at::kInt);
  } else {
    fill<int64_t>(args, grad_output, grad_value, at::kLong);
  }
}

#define DETRX_INSTANTIATE(T)                         \
  template void deterministic_grad_value<T>( \
      const DeformAttnInputs<T, Compute<T>>&, const T*, at::Tensor&);
DETRX_FOR_EACH_TYPE(DETRX_INSTANTIATE)

}  // namespace detrx::cuda
