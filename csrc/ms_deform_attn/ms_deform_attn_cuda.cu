// CUDA implementation of detrx::ms_deform_attn: one thread per output channel forward, one warp per query and head
// backward. float16 and bfloat16 are computed and accumulated in float32.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "bilinear.h"
#include "ms_deform_attn.h"

namespace detrx {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// The type of the arithmetic for tensors of type T.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Level {
  int height, width;
  int64_t start;
};

__device__ __forceinline__ Level read_level(
    const DeformAttnSizes& n, const int64_t* spatial_shapes, const int64_t* level_start_index, int64_t l) {
  const Level level{
      static_cast<int>(spatial_shapes[2 * l]), static_cast<int>(spatial_shapes[2 * l + 1]), level_start_index[l]};
  CUDA_KERNEL_ASSERT(
      level.start >= 0 && level.start + int64_t(level.height) * level.width <= n.S &&
      "spatial_shapes and level_start_index do not fit value");
  return level;
}

__device__ __forceinline__ int64_t corner_token(const Level& level, int x, int y, int k) {
  return level.start + int64_t(y + k / 2) * level.width + x + k % 2;
}

template <typename T>
__global__ void forward_kernel(DeformAttnForward<T> args, int64_t count) {
  using C = Compute<T>;
  const DeformAttnSizes& n = args.sizes;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t d = i % n.D, query = i / n.D;  // query = (b * Q + q) * M + m
    const int64_t m = query % n.M, b = query / n.M / n.Q;
    const T* value = args.value + (b * n.S * n.M + m) * n.D + d;
    C sum = 0;
    for (int64_t l = 0; l < n.L; ++l) {
      const Level level = read_level(n, args.spatial_shapes, args.level_start_index, l);
      for (int64_t p = 0; p < n.P; ++p) {
        const int64_t index = (query * n.L + l) * n.P + p;
        const BilinearPoint<C> point = locate(
            static_cast<C>(args.locations[2 * index]), static_cast<C>(args.locations[2 * index + 1]), level.height,
            level.width);
        const CornerWeights<C> weight = corner_weights(point.dx, point.dy);
        C sample = 0;
        for (int k = 0; k < 4; ++k) {
          if (point.corners >> k & 1) {
            sample += weight.w[k] * static_cast<C>(value[corner_token(level, point.x, point.y, k) * n.M * n.D]);
          }
        }
        sum += static_cast<C>(args.attention[index]) * sample;
      }
    }
    args.output[i] = static_cast<T>(sum);
  }
}

template <typename C>
__device__ __forceinline__ C warp_sum(C x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

// `count` warps, one per (b, q, m); the lanes share the channels.
template <typename T>
__global__ void backward_kernel(DeformAttnBackward<T, Compute<T>> args, int64_t count) {
  using C = Compute<T>;
  const DeformAttnSizes& n = args.sizes;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp);
  for (int64_t query = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; query < count; query += warps) {
    const int64_t m = query % n.M, b = query / n.M / n.Q;
    const int64_t value_offset = (b * n.S * n.M + m) * n.D;
    const T* grad_output = args.grad_output + query * n.D;
    for (int64_t l = 0; l < n.L; ++l) {
      const Level level = read_level(n, args.spatial_shapes, args.level_start_index, l);
      for (int64_t p = 0; p < n.P; ++p) {
        const int64_t index = (query * n.L + l) * n.P + p;
        const C attention = static_cast<C>(args.attention[index]);
        const BilinearPoint<C> point = locate(
            static_cast<C>(args.locations[2 * index]), static_cast<C>(args.locations[2 * index + 1]), level.height,
            level.width);
        const CornerWeights<C> weight = corner_weights(point.dx, point.dy);
        C dots[4] = {0, 0, 0, 0};
        for (int64_t d = lane; d < n.D; d += kWarp) {
          const C grad = static_cast<C>(grad_output[d]);
          for (int k = 0; k < 4; ++k) {
            if (point.corners >> k & 1) {
              const int64_t offset = value_offset + corner_token(level, point.x, point.y, k) * n.M * n.D + d;
              dots[k] += grad * static_cast<C>(args.value[offset]);
              atomicAdd(args.grad_value + offset, attention * weight.w[k] * grad);
            }
          }
        }
        for (int k = 0; k < 4; ++k) {
          dots[k] = warp_sum(dots[k]);
        }
        if (lane == 0) {
          const PointGradient<C> gradient = point_gradient(
              dots[0], dots[1], dots[2], dots[3], point.dx, point.dy, attention, level.height, level.width);
          args.grad_locations[2 * index] = static_cast<T>(gradient.x);
          args.grad_locations[2 * index + 1] = static_cast<T>(gradient.y);
          args.grad_attention[index] = static_cast<T>(gradient.attention);
        }
      }
    }
  }
}

int blocks(int64_t count, int64_t per_block) {
  return static_cast<int>(std::min<int64_t>((count + per_block - 1) / per_block, 1 << 20));
}

at::Tensor ms_deform_attn_cuda(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const DeformAttnSizes n = check_ms_deform_attn(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const c10::cuda::CUDAGuard guard(value.device());
  const at::Tensor v = value.contiguous();
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  const at::Tensor locations = sampling_locations.contiguous();
  const at::Tensor attention = attention_weights.contiguous();
  at::Tensor output = at::empty({n.B, n.Q, n.M * n.D}, v.options());
  const int64_t count = output.numel();
  if (count == 0) {
    return output;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, v.scalar_type(), "ms_deform_attn", [&] {
    forward_kernel<scalar_t><<<blocks(count, kThreads), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        {n, v.const_data_ptr<scalar_t>(), shapes.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
         locations.const_data_ptr<scalar_t>(), attention.const_data_ptr<scalar_t>(),
         output.mutable_data_ptr<scalar_t>()},
        count);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward_cuda(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const DeformAttnSizes n = check_ms_deform_attn(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_ms_deform_attn_grad(n, value, grad_output);
  const c10::cuda::CUDAGuard guard(value.device());
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor v = value.contiguous();
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  const at::Tensor locations = sampling_locations.contiguous();
  const at::Tensor attention = attention_weights.contiguous();
  const bool reduced = at::isReducedFloatingType(v.scalar_type());
  at::Tensor grad_value = at::zeros_like(v, v.options().dtype(reduced ? at::kFloat : v.scalar_type()));
  at::Tensor grad_locations = at::empty_like(locations);
  at::Tensor grad_attention = at::empty_like(attention);
  const int64_t count = n.B * n.Q * n.M;
  if (count == 0) {
    return {grad_value.to(v.scalar_type()), grad_locations, grad_attention};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, v.scalar_type(), "ms_deform_attn_backward", [&] {
    backward_kernel<scalar_t>
        <<<blocks(count, kThreads / kWarp), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            {n, grad.const_data_ptr<scalar_t>(), v.const_data_ptr<scalar_t>(), shapes.const_data_ptr<int64_t>(),
             starts.const_data_ptr<int64_t>(), locations.const_data_ptr<scalar_t>(),
             attention.const_data_ptr<scalar_t>(), grad_value.mutable_data_ptr<Compute<scalar_t>>(),
             grad_locations.mutable_data_ptr<scalar_t>(), grad_attention.mutable_data_ptr<scalar_t>()},
            count);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_value.to(v.scalar_type()), grad_locations, grad_attention};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("ms_deform_attn", &detrx::ms_deform_attn_cuda);
  m.impl("ms_deform_attn_backward", &detrx::ms_deform_attn_backward_cuda);
}
