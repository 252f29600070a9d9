// CUDA implementation of detrx::moe_combine, and of the backward pass of moe_dispatch, which is a combine without
// weights: one launch each, nothing is read on the host, and no sum of floats is shared among warps, so that every
// result is the same in every run. float16 and bfloat16 are computed in float32.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../../cuda/warps.cuh"
#include "../../reduced_float.h"
#include "../moe.h"
#include "../routing.h"
#include "token_rows.cuh"

namespace detrx::cuda {
namespace {

// kCount channels are read and written together: 16 bytes, or one where rows are not aligned to that.
template <typename T, int kCount, int kTopK>
__global__ void __launch_bounds__(kThreads, kBlocks<kTopK>) combine_kernel(MoeCombine<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int k = args.places.k;
  const unsigned packs = args.channels / kCount;
  const Pack* __restrict__ y = reinterpret_cast<const Pack*>(args.y);
  Pack* __restrict__ output = reinterpret_cast<Pack*>(args.output);
  for (unsigned t = first_warp(); t < args.places.tokens; t += warp_stride()) {
    TokenRows<kTopK> rows(args.places, t);
    C weights[kTopK];
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      weights[j] = j < k && args.weights ? static_cast<C>(args.weights[t * k + j]) : C(1);
    }
    rows.share(args.places);
#pragma unroll 1
    for (unsigned p = lane(); p < packs; p += kWarp) {
      Pack packs_of[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          packs_of[j] = y[uint64_t(rows.at[j]) * packs + p];
        }
      }
      C sum[kCount] = {};
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            sum[c] += weights[j] * static_cast<C>(packs_of[j].value[c]);
          }
        }
      }
      Pack result;
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        result.value[c] = static_cast<T>(sum[c]);
      }
      output[uint64_t(t) * packs + p] = result;
    }
    rows.check(args.places);
  }
}

template <typename T, int kCount, int kTopK>
__global__ void __launch_bounds__(kThreads, kBlocks<kTopK>) combine_backward_kernel(MoeCombineBackward<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int k = args.places.k;
  const unsigned packs = args.channels / kCount;
  const Pack* __restrict__ grad_output = reinterpret_cast<const Pack*>(args.grad_output);
  const Pack* __restrict__ y = reinterpret_cast<const Pack*>(args.y);
  Pack* __restrict__ grad_y = reinterpret_cast<Pack*>(args.grad_y);
  for (unsigned t = first_warp(); t < args.places.tokens; t += warp_stride()) {
    TokenRows<kTopK> rows(args.places, t);
    C weights[kTopK], dots[kTopK] = {};
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      weights[j] = j < k ? static_cast<C>(args.weights[t * k + j]) : C(0);
    }
    rows.share(args.places);
#pragma unroll 1
    for (unsigned p = lane(); p < packs; p += kWarp) {
      const Pack grad = grad_output[uint64_t(t) * packs + p];
      Pack packs_of[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          packs_of[j] = y[uint64_t(rows.at[j]) * packs + p];
        }
      }
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          Pack result;
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            dots[j] += static_cast<C>(grad.value[c]) * static_cast<C>(packs_of[j].value[c]);
            result.value[c] = static_cast<T>(weights[j] * static_cast<C>(grad.value[c]));
          }
          grad_y[uint64_t(rows.at[j]) * packs + p] = result;
        }
      }
    }
    C own = 0;  // lane j keeps the j-th
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      if (j < k) {
#pragma unroll
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
          dots[j] += __shfl_xor_sync(kAllLanes, dots[j], offset);
        }
        own = lane() == j ? dots[j] : own;
      }
    }
    if (lane() < k) {
      args.grad_weights[t * k + lane()] = static_cast<T>(own);
    }
    rows.check(args.places);
  }
}

// What choose(count, top_k) returns, for kernels that read `count` channels together (one, unless rows are `packed`) and
// have room for top_k assignments.
template <typename T, typename Choose>
auto kernel_for(bool packed, int k, const Choose& choose) {
  if (!packed) {
    return choose(std::integral_constant<int, 1>(), std::integral_constant<int, kMaxTopK>());
  }
  return for_top_k(k, [&](auto top_k) { return choose(std::integral_constant<int, 16 / sizeof(T)>(), top_k); });
}

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor sum_rows(
    const at::Tensor& y, const at::Tensor* weights, const at::Tensor& order, const at::Tensor& place) {
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor rows = y.contiguous(), o = order.contiguous(), p = place.contiguous();
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor();
  const MoePlaces places = places_of(o, p);
  at::Tensor output = at::empty({places.tokens, y.size(1)}, rows.options());
  if (output.numel() == 0) {
    return output;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine", [&] {
    const MoeCombine<scalar_t> args{
        places, y.size(1), rows.const_data_ptr<scalar_t>(), weights ? w.const_data_ptr<scalar_t>() : nullptr,
        output.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.y, args.output);
    const auto kernel = kernel_for<scalar_t>(packed, places.k, [](auto count, auto top_k) {
      return &combine_kernel<scalar_t, decltype(count)::value, decltype(top_k)::value>;
    });
    kernel<<<blocks_for(places.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

at::Tensor dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch_backward(grad_output, order, place);
  return sum_rows(grad_output, nullptr, order, place);
}

at::Tensor combine(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  return sum_rows(y, &weights, order, place);
}

std::tuple<at::Tensor, at::Tensor> combine_backward(
    const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order,
    const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  check_moe_combine_backward(grad_output, y, weights);
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor grad = grad_output.contiguous(), rows = y.contiguous(), w = weights.contiguous();
  const at::Tensor o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  at::Tensor grad_y = at::empty_like(rows);
  at::Tensor grad_weights = at::empty_like(w);
  if (w.numel() == 0) {
    return {grad_y, grad_weights};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine_backward", [&] {
    const MoeCombineBackward<scalar_t> args{
        places, rows.size(1), grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(),
        w.const_data_ptr<scalar_t>(), grad_y.mutable_data_ptr<scalar_t>(),
        grad_weights.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.grad_output, args.y, args.grad_y);
    const auto kernel = kernel_for<scalar_t>(packed, places.k, [](auto count, auto top_k) {
      return &combine_backward_kernel<scalar_t, decltype(count)::value, decltype(top_k)::value>;
    });
    kernel<<<blocks_for(places.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_y, grad_weights};
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_dispatch_backward", &detrx::cuda::dispatch_backward);
  m.impl("moe_combine", &detrx::cuda::combine);
  m.impl("moe_combine_backward", &detrx::cuda::combine_backward);
}
