// CUDA implementation of detrx::ms_deform_attn and detrx::ms_deform_attn_fused.
//
// A group of lanes of one warp works on an item, a query and head; every lane has 16 bytes of its channels. The lanes
// first share the points among them, so that locations and weights are read and computed once per item, and leave tokens
// and corner weights in shared memory. Then they go through the points together, each for its channels. float16 and
// bfloat16 are computed and accumulated in float32.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

#include "../reduced_float.h"
#include "bilinear.h"
#include "ms_deform_attn.h"
#include "operators.h"
#include "sampling.h"

namespace detrx {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedMemory = 48 * 1024;  // what every device gives a block

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Channels {
  T at[kCount];
};

// How a kernel for heads of kChannels channels divides them, 0 for any number.
template <typename T, int kChannels>
struct Layout {
  static constexpr int kVector = kChannels ? 16 / sizeof(T) : 1;  // channels of a lane at a time
  static constexpr int kGroup = kChannels ? kChannels / kVector : kWarp;
};

template <typename C, int kGroup>
__device__ __forceinline__ C group_sum(C x) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

template <typename C, int kGroup>
__device__ __forceinline__ C group_maximum(C x) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    const C other = __shfl_xor_sync(kAllLanes, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

struct Level {
  int height, width;
  int64_t start;
};

template <typename T, typename C>
__device__ __forceinline__ Level read_level(const DeformAttnInputs<T, C>& args, int l) {
  const Level level{
      static_cast<int>(args.spatial_shapes[2 * l]), static_cast<int>(args.spatial_shapes[2 * l + 1]),
      args.level_start_index[l]};
  CUDA_KERNEL_ASSERT(
      level.start >= 0 && level.start + int64_t(level.height) * level.width <= args.sizes.S &&
      "spatial_shapes and level_start_index do not fit value");
  return level;
}

// Item (b * Q + q) * M + m.
struct Item {
  int64_t index, b, query;  // query = b * Q + q
  int m;
};

__device__ __forceinline__ Item split(const DeformAttnSizes& n, int64_t index) {
  if (index <= std::numeric_limits<int32_t>::max()) {  // much cheaper divisions
    const unsigned query = unsigned(index) / unsigned(n.M);
    return {index, query / unsigned(n.Q), query, static_cast<int>(unsigned(index) - query * unsigned(n.M))};
  }
  return {index, index / n.M / n.Q, index / n.M, static_cast<int>(index % n.M)};
}

// A point as all lanes of a group see it, in shared memory.
template <typename C>
struct alignas(16) SharedPoint {
  C weight[4];   // of the corners, times the attention weight
  int token[4];  // -1 outside the map
};

template <typename C>
struct Location {
  C x, y;
  Level level;
};

template <typename T, typename C>
__device__ __forceinline__ Location<C> point_of(
    const DeformAttnInputs<T, C>& args, const Item& item, int points_per_item, int i) {
  const int l = unsigned(i) / unsigned(args.sizes.P);
  const Level level = read_level(args, l);
  const Channels<T, 2> stored =
      reinterpret_cast<const Channels<T, 2>*>(args.points)[item.index * points_per_item + i];
  const C x = static_cast<C>(stored.at[0]), y = static_cast<C>(stored.at[1]);
  if (!args.reference) {
    return {x, y, level};
  }
  const C* reference = args.reference + (item.query * args.sizes.L + l) * args.reference_size;
  if (args.reference_size == 2) {
    return {point_location(reference[0], x, divisor<C>(level.width)),
            point_location(reference[1], y, divisor<C>(level.height)), level};
  }
  const C per_level = static_cast<C>(args.sizes.P);
  return {box_location(reference[0], reference[2], x, per_level),
          box_location(reference[1], reference[3], y, per_level), level};
}

// Leaves the attention weights of an item in `weights`, in shared memory.
template <typename T, typename C, int kGroup>
__device__ __forceinline__ void read_weights(
    const DeformAttnInputs<T, C>& args, const Item& item, int points_per_item, int lane, C* weights) {
  const T* stored = args.weights + item.index * points_per_item;
  C maximum = -static_cast<C>(INFINITY);
  for (int i = lane; i < points_per_item; i += kGroup) {
    weights[i] = static_cast<C>(stored[i]);
    maximum = weights[i] > maximum ? weights[i] : maximum;
  }
  if (args.reference) {
    maximum = group_maximum<C, kGroup>(maximum);
    C sum = 0;
    for (int i = lane; i < points_per_item; i += kGroup) {
      weights[i] = exp_not_positive(weights[i] - maximum);
      sum += weights[i];
    }
    const C scale = 1 / group_sum<C, kGroup>(sum);
    for (int i = lane; i < points_per_item; i += kGroup) {
      weights[i] *= scale;
    }
  }
}

template <typename C>
__device__ __forceinline__ SharedPoint<C> shared_point(const BilinearPoint<C>& point, const Level& level, C attention) {
  const CornerWeights<C> weight = corner_weights(point.dx, point.dy);
  SharedPoint<C> result;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    result.weight[k] = weight.w[k] * attention;
    const int64_t token = level.start + int64_t(point.y + k / 2) * level.width + point.x + k % 2;
    result.token[k] = point.corners >> k & 1 ? static_cast<int>(token) : -1;
  }
  return result;
}

// Everything that the groups of a block share: `per_thread` bytes for every thread, then `numbers` for every group.
template <typename C>
__device__ __forceinline__ C* group_numbers(char* memory, int per_thread, int group, int numbers) {
  return reinterpret_cast<C*>(memory + blockDim.x * per_thread) + group * numbers;
}

// All lanes of a warp stay in the loops together. Groups beyond the end repeat the last item and write nothing.
template <typename T, typename C, int kChannels>
__global__ void __launch_bounds__(kThreads)
forward_kernel(const DeformAttnInputs<T, C> args, T* __restrict__ all_outputs, int64_t count) {
  constexpr int kVector = Layout<T, kChannels>::kVector, kGroup = Layout<T, kChannels>::kGroup;
  typedef Channels<T, kVector> Vector;
  extern __shared__ __align__(16) char memory[];
  const DeformAttnSizes& n = args.sizes;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup, groups = blockDim.x / kGroup;
  const int points_per_item = n.L * n.P;
  const int64_t row = n.M * n.D, channels = kChannels ? kChannels : n.D;
  SharedPoint<C>* points = reinterpret_cast<SharedPoint<C>*>(memory) + group * kGroup;
  C* weights = group_numbers<C>(memory, sizeof(SharedPoint<C>), group, points_per_item);
  for (int64_t first_item = int64_t(blockIdx.x) * groups; first_item < count;
       first_item += int64_t(gridDim.x) * groups) {
    const bool active = first_item + group < count;
    const Item item = split(n, active ? first_item + group : count - 1);
    __syncwarp();
    read_weights<T, C, kGroup>(args, item, points_per_item, lane, weights);
    const T* value = args.value + (item.b * n.S * n.M + item.m) * n.D;
    for (int64_t chunk = 0; chunk < channels; chunk += kGroup * kVector) {
      const int64_t channel = chunk + lane * kVector;
      const bool mine = kChannels || channel < channels;
      C sum[kVector] = {};
      for (int first = 0; first < points_per_item; first += kGroup) {
        __syncwarp();
        if (first + lane < points_per_item) {
          const Location<C> location = point_of(args, item, points_per_item, first + lane);
          const BilinearPoint<C> point = locate(location.x, location.y, location.level.height, location.level.width);
          points[lane] = shared_point(point, location.level, weights[first + lane]);
        }
        __syncwarp();
        const int together = min(kGroup, points_per_item - first);
#pragma unroll 4
        for (int j = 0; j < together; ++j) {
          const SharedPoint<C> point = points[j];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (mine && point.token[k] >= 0) {
              const Vector corner = *reinterpret_cast<const Vector*>(value + point.token[k] * row + channel);
#pragma unroll
              for (int c = 0; c < kVector; ++c) {
                sum[c] += point.weight[k] * static_cast<C>(corner.at[c]);
              }
            }
          }
        }
      }
      if (active && mine) {
        Vector result;
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          result.at[c] = static_cast<T>(sum[c]);
        }
        *reinterpret_cast<Vector*>(all_outputs + item.index * n.D + channel) = result;
      }
    }
  }
}

// target += values, for kVector channels.
template <typename C, int kVector>
__device__ __forceinline__ void add_atomically(C* target, const C (&values)[kVector]) {
#if __CUDA_ARCH__ >= 900
  constexpr bool kFourAtOnce = std::is_same_v<C, float> && kVector % 4 == 0;
#else
  constexpr bool kFourAtOnce = false;
#endif
#pragma unroll
  for (int c = 0; c < kVector; c += kFourAtOnce ? 4 : 1) {
#if __CUDA_ARCH__ >= 900
    if constexpr (kFourAtOnce) {
      atomicAdd(
          reinterpret_cast<float4*>(target + c),
          make_float4(values[c], values[c + 1], values[c + 2], values[c + 3]));
    } else {
      atomicAdd(target + c, values[c]);
    }
#else
    atomicAdd(target + c, values[c]);
#endif
  }
}

// Sums four numbers over the lanes of a group into `sums`, with as few shuffles as possible: every step halves what a
// lane still has to sum, as long as there is more than one number.
template <typename C, int kGroup>
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

template <typename C>
struct alignas(16) SharedDots {
  C at[4];
};

// For the deterministic mode: the row of grad_value, (b * S + token) * M + m or kNoRow, that every corner of every point
// adds to, and with which weight. Null otherwise.
template <typename C>
struct Contributions {
  int64_t* rows;
  C* weights;
};

constexpr int64_t kNoRow = std::numeric_limits<int64_t>::max();

// Of an item, in shared memory, over its points.
template <typename C>
struct ItemGradients {
  C* weights;       // attention weights
  C* grad_weights;
  C* grad_x;        // of the locations
  C* grad_y;
};

// Gradients of what the operator was given, from those of weights and locations.
template <typename T, typename C, int kGroup>
__device__ __forceinline__ void store_gradients(
    const DeformAttnInputs<T, C>& args, const DeformAttnGradients<T, C>& grads, const Item& item, int points_per_item,
    int lane, bool active, const ItemGradients<C>& from) {
  const int64_t first = item.index * points_per_item, levels = item.query * args.sizes.L;
  const int size = args.reference_size, per_level = args.sizes.P;
  C mean = 0;
  if (args.reference) {
    for (int i = lane; i < points_per_item; i += kGroup) {
      mean += from.weights[i] * from.grad_weights[i];
    }
    mean = group_sum<C, kGroup>(mean);
  }
  if (!active) {
    return;
  }
  for (int i = lane; i < points_per_item; i += kGroup) {
    C x = from.grad_x[i], y = from.grad_y[i], weight = from.grad_weights[i];
    if (args.reference) {
      const int l = unsigned(i) / unsigned(per_level);
      weight = logit_gradient(from.weights[i], weight, mean);
      if (size == 2) {
        x = point_offset_gradient(x, divisor<C>(args.spatial_shapes[2 * l + 1]));
        y = point_offset_gradient(y, divisor<C>(args.spatial_shapes[2 * l]));
      } else {
        const C* reference = args.reference + (levels + l) * size;
        x = box_offset_gradient(x, reference[2], static_cast<C>(per_level));
        y = box_offset_gradient(y, reference[3], static_cast<C>(per_level));
      }
    }
    reinterpret_cast<Channels<T, 2>*>(grads.grad_points)[first + i] = {{static_cast<T>(x), static_cast<T>(y)}};
    grads.grad_weights[first + i] = static_cast<T>(weight);
  }
  if (grads.grad_reference) {
    for (int l = lane; l < args.sizes.L; l += kGroup) {
      C sum[4] = {};
      for (int i = l * per_level; i < (l + 1) * per_level; ++i) {
        const Channels<T, 2> offset = reinterpret_cast<const Channels<T, 2>*>(args.points)[first + i];
        sum[0] += from.grad_x[i];
        sum[1] += from.grad_y[i];
        sum[2] += box_extent_gradient(from.grad_x[i], static_cast<C>(offset.at[0]), static_cast<C>(per_level));
        sum[3] += box_extent_gradient(from.grad_y[i], static_cast<C>(offset.at[1]), static_cast<C>(per_level));
      }
      C* target = grads.grad_reference + (item.index * args.sizes.L + l) * size;
      target[0] = sum[0];
      target[1] = sum[1];
      if (size == 4) {
        target[2] = sum[2];
        target[3] = sum[3];
      }
    }
  }
}

template <typename T, typename C, int kChannels>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const DeformAttnInputs<T, C> args, const DeformAttnGradients<T, C> grads, const Contributions<C> contributions,
    int64_t count) {
  constexpr int kVector = Layout<T, kChannels>::kVector, kGroup = Layout<T, kChannels>::kGroup;
  typedef Channels<T, kVector> Vector;
  extern __shared__ __align__(16) char memory[];
  const DeformAttnSizes& n = args.sizes;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup, groups = blockDim.x / kGroup;
  const int points_per_item = n.L * n.P;
  const int64_t row = n.M * n.D, channels = kChannels ? kChannels : n.D;
  SharedPoint<C>* points = reinterpret_cast<SharedPoint<C>*>(memory) + group * kGroup;
  SharedDots<C>* dots =
      reinterpret_cast<SharedDots<C>*>(memory + blockDim.x * sizeof(SharedPoint<C>)) + group * kGroup;
  C* numbers =
      group_numbers<C>(memory, sizeof(SharedPoint<C>) + sizeof(SharedDots<C>), group, 4 * points_per_item);
  const ItemGradients<C> shared{
      numbers, numbers + points_per_item, numbers + 2 * points_per_item, numbers + 3 * points_per_item};
  for (int64_t first_item = int64_t(blockIdx.x) * groups; first_item < count;
       first_item += int64_t(gridDim.x) * groups) {
    const bool active = first_item + group < count;
    const Item item = split(n, active ? first_item + group : count - 1);
    __syncwarp();
    read_weights<T, C, kGroup>(args, item, points_per_item, lane, shared.weights);
    const int64_t head = (item.b * n.S * n.M + item.m) * n.D;
    const T* grad_output = grads.grad_output + item.index * n.D;
    for (int first = 0; first < points_per_item; first += kGroup) {
      const int i = first + lane;
      const bool has_point = i < points_per_item;
      BilinearPoint<C> point{};
      Level level{};
      __syncwarp();
      if (has_point) {
        const Location<C> location = point_of(args, item, points_per_item, i);
        level = location.level;
        point = locate(location.x, location.y, level.height, level.width);
        points[lane] = shared_point(point, level, shared.weights[i]);
        if (contributions.rows && active) {
          for (int k = 0; k < 4; ++k) {
            const int64_t index = (item.index * points_per_item + i) * 4 + k;
            const int token = points[lane].token[k];
            contributions.rows[index] = token < 0 ? kNoRow : (item.b * n.S + token) * n.M + item.m;
            contributions.weights[index] = points[lane].weight[k];
          }
        }
      }
      __syncwarp();
      const int together = min(kGroup, points_per_item - first);
#pragma unroll 2
      for (int j = 0; j < together; ++j) {
        const SharedPoint<C> shared_point = points[j];
        C partial[4] = {};
        for (int64_t chunk = 0; chunk < channels; chunk += kGroup * kVector) {
          const int64_t channel = chunk + lane * kVector;
          if (kChannels || channel < channels) {
            const Vector stored = *reinterpret_cast<const Vector*>(grad_output + channel);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              if (shared_point.token[k] >= 0) {
                const int64_t offset = head + shared_point.token[k] * row + channel;
                const Vector corner = *reinterpret_cast<const Vector*>(args.value + offset);
                C terms[kVector];
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                  const C grad = static_cast<C>(stored.at[c]);
                  partial[k] += grad * static_cast<C>(corner.at[c]);
                  terms[c] = shared_point.weight[k] * grad;
                }
                if (active && !contributions.rows) {
                  add_atomically(grads.grad_value + offset, terms);
                }
              }
            }
          }
        }
        group_sums<C, kGroup>(partial, lane, dots[j].at);
      }
      __syncwarp();
      if (has_point) {
        const SharedDots<C> mine = dots[lane];
        const PointGradient<C> gradient = point_gradient(
            mine.at[0], mine.at[1], mine.at[2], mine.at[3], point.dx, point.dy, shared.weights[i], level.height,
            level.width);
        shared.grad_x[i] = gradient.x;
        shared.grad_y[i] = gradient.y;
        shared.grad_weights[i] = gradient.attention;
      }
    }
    __syncwarp();
    store_gradients<T, C, kGroup>(args, grads, item, points_per_item, lane, active, shared);
  }
}

// One warp per entry of the sorted `rows`; the first of a row adds all of that row, in the order of the contributions.
template <typename T, typename C>
__global__ void __launch_bounds__(kThreads) gather_kernel(
    const int64_t* __restrict__ rows, const int64_t* __restrict__ order, const C* __restrict__ weights,
    const T* __restrict__ grad_output, C* __restrict__ grad_value, int64_t count, int64_t channels,
    int64_t contributions_per_item) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp);
  for (int64_t entry = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; entry < count; entry += warps) {
    const int64_t row = rows[entry];
    if (row == kNoRow || (entry > 0 && rows[entry - 1] == row)) {
      continue;
    }
    for (int64_t d = lane; d < channels; d += kWarp) {
      C sum = 0;
      for (int64_t i = entry; i < count && rows[i] == row; ++i) {
        const int64_t item = order[i] / contributions_per_item;
        sum += weights[order[i]] * static_cast<C>(grad_output[item * channels + d]);
      }
      grad_value[row * channels + d] = sum;
    }
  }
}

int blocks(int64_t count, int64_t per_block) {
  return static_cast<int>(
      std::min<int64_t>((count + per_block - 1) / per_block, std::numeric_limits<int32_t>::max()));
}

struct Launch {
  int blocks, threads, shared_memory;
};

// A block has as many groups as its threads and the shared memory allow, and whole warps.
Launch plan(int64_t count, int group, int64_t bytes_per_thread, int64_t bytes_per_group) {
  int threads = kThreads;
  const auto bytes = [&] { return threads * bytes_per_thread + threads / group * bytes_per_group; };
  while (threads > kWarp && bytes() > kSharedMemory) {
    threads /= 2;
  }
  TORCH_CHECK_VALUE(
      bytes() <= kSharedMemory, "ms_deform_attn: too many levels times points for a block's shared memory: they need ",
      bytes_per_group, " bytes");
  return {blocks(count, threads / group), threads, static_cast<int>(bytes())};
}

// Calls `function` with the number of channels that kernels are specialised for, 0 for any.
template <typename Function>
void for_channels(int64_t channels, const Function& function) {
  switch (channels) {
    case 16:
      return function(std::integral_constant<int, 16>());
    case 32:
      return function(std::integral_constant<int, 32>());
    case 64:
      return function(std::integral_constant<int, 64>());
    default:
      return function(std::integral_constant<int, 0>());
  }
}

at::ScalarType compute_type(const at::Tensor& value) {
  return at::isReducedFloatingType(value.scalar_type()) ? at::kFloat : value.scalar_type();
}

// Contiguous and on 16 bytes: a slice of a larger tensor may begin anywhere.
at::Tensor aligned(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 ? contiguous.clone() : contiguous;
}

// Arguments as the kernels take them.
class Prepared {
 public:
  Prepared(const DeformAttnArguments& arguments, const DeformAttnSizes& sizes)
      : sizes_(sizes),
        value_(aligned(arguments.value)),
        spatial_shapes_(arguments.spatial_shapes.to(at::kLong).contiguous()),
        level_start_index_(arguments.level_start_index.to(at::kLong).contiguous()),
        points_(aligned(arguments.points)),
        weights_(arguments.weights.contiguous()) {
    if (arguments.reference) {
      reference_ = arguments.reference->to(compute_type(value_)).contiguous();
    }
  }
  template <typename T>
  DeformAttnInputs<T, Compute<T>> inputs() const {
    typedef Compute<T> C;
    return {sizes_,
            value_.const_data_ptr<T>(),
            spatial_shapes_.const_data_ptr<int64_t>(),
            level_start_index_.const_data_ptr<int64_t>(),
            points_.const_data_ptr<T>(),
            weights_.const_data_ptr<T>(),
            reference_.defined() ? reference_.const_data_ptr<C>() : nullptr,
            reference_.defined() ? static_cast<int>(reference_.size(3)) : 0};
  }

 private:
  DeformAttnSizes sizes_;
  at::Tensor value_, spatial_shapes_, level_start_index_, points_, weights_, reference_;
};

at::Tensor run_forward(const DeformAttnArguments& arguments) {
  const DeformAttnSizes n = check_arguments(arguments);
  const at::Tensor& value = arguments.value;
  const c10::cuda::CUDAGuard guard(value.device());
  const Prepared prepared(arguments, n);
  at::Tensor output = at::empty({n.B, n.Q, n.M * n.D}, value.options());
  if (output.numel() == 0) {
    return output;
  }
  const int64_t count = n.B * n.Q * n.M;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    for_channels(n.D, [&](auto channels) {
      typedef Compute<scalar_t> C;
      constexpr int kChannels = decltype(channels)::value;
      const Launch launch =
          plan(count, Layout<scalar_t, kChannels>::kGroup, sizeof(SharedPoint<C>), n.L * n.P * sizeof(C));
      forward_kernel<scalar_t, C, kChannels>
          <<<launch.blocks, launch.threads, launch.shared_memory, c10::cuda::getCurrentCUDAStream()>>>(
              prepared.inputs<scalar_t>(), output.mutable_data_ptr<scalar_t>(), count);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return output;
}

// Gradients of value, points, weights and, where it is asked for, the reference.
DeformAttnGradientTensors run_backward(
    const DeformAttnArguments& arguments, const at::Tensor& grad_output, bool reference_needs_grad) {
  const DeformAttnSizes n = check_arguments(arguments);
  check_grad_output(arguments, n, grad_output);
  const at::Tensor& value = arguments.value;
  const c10::cuda::CUDAGuard guard(value.device());
  const Prepared prepared(arguments, n);
  const at::Tensor grad = aligned(grad_output);
  const auto compute = value.options().dtype(compute_type(value));
  at::Tensor grad_value = at::zeros(value.sizes(), compute);
  at::Tensor grad_points = at::empty(arguments.points.sizes(), value.options());
  at::Tensor grad_weights = at::empty(arguments.weights.sizes(), value.options());
  at::Tensor grad_reference;
  if (reference_needs_grad) {
    grad_reference = at::zeros({n.B, n.Q, n.M, n.L, arguments.reference->size(3)}, compute);
  }
  const int64_t count = n.B * n.Q * n.M, contributions_per_item = 4 * n.L * n.P;
  at::Tensor rows, row_weights;
  if (at::globalContext().deterministicAlgorithms()) {
    rows = at::empty({count * contributions_per_item}, value.options().dtype(at::kLong));
    row_weights = at::empty({count * contributions_per_item}, compute);
  }
  if (count * n.L * n.P > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
      typedef Compute<scalar_t> C;
      const auto stream = c10::cuda::getCurrentCUDAStream();
      const DeformAttnGradients<scalar_t, C> gradients{
          grad.const_data_ptr<scalar_t>(), grad_value.mutable_data_ptr<C>(), grad_points.mutable_data_ptr<scalar_t>(),
          grad_weights.mutable_data_ptr<scalar_t>(),
          reference_needs_grad ? grad_reference.mutable_data_ptr<C>() : nullptr};
      Contributions<C> contributions{nullptr, nullptr};
      if (rows.defined()) {
        contributions = {rows.mutable_data_ptr<int64_t>(), row_weights.mutable_data_ptr<C>()};
      }
      for_channels(n.D, [&](auto channels) {
        constexpr int kChannels = decltype(channels)::value;
        const Launch launch =
            plan(count, Layout<scalar_t, kChannels>::kGroup, sizeof(SharedPoint<C>) + sizeof(SharedDots<C>),
                 4 * n.L * n.P * sizeof(C));
        backward_kernel<scalar_t, C, kChannels><<<launch.blocks, launch.threads, launch.shared_memory, stream>>>(
            prepared.inputs<scalar_t>(), gradients, contributions, count);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
      if (rows.defined()) {
        const auto [sorted, order] = at::sort(rows, /*stable=*/true, /*dim=*/0, /*descending=*/false);
        gather_kernel<scalar_t, C><<<blocks(rows.numel(), kThreads / kWarp), kThreads, 0, stream>>>(
            sorted.template const_data_ptr<int64_t>(), order.template const_data_ptr<int64_t>(),
            row_weights.const_data_ptr<C>(), gradients.grad_output, gradients.grad_value, rows.numel(), n.D,
            contributions_per_item);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      }
    });
  }
  if (reference_needs_grad) {
    grad_reference = grad_reference.sum(2).to(arguments.reference->scalar_type());
  } else if (arguments.reference) {
    grad_reference = at::empty({0}, arguments.reference->options());
  }
  return {grad_value.to(value.scalar_type()), grad_points, grad_weights, grad_reference};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  detrx::DeformAttnOperators<&detrx::run_forward, &detrx::run_backward>::register_in(m);
}
