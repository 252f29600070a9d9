// CUDA implementation of the backward pass of detrx::moe_route: one launch, nothing is read on the host.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <cstdint>

#include "../../cuda/warps.cuh"
#include "../../reduced_float.h"
#include "../moe.h"
#include "../routing.h"
#include "slots.cuh"

namespace detrx::cuda {
namespace {

// One thread per token and kSlots experts: 2^shift threads are a token.
template <typename T, int kTopK>
__global__ void __launch_bounds__(kThreads) route_backward_kernel(
    const T* grad_weights, const T* logits, const int64_t* experts, int64_t tokens, int num_experts, int k,
    int shift, bool packed, T* grad_logits) {
  using C = Compute<T>;
  using Pack = Pack<T, kSlots>;
  for (int64_t i = first_thread(); i < tokens << shift; i += thread_stride()) {
    const int64_t t = i >> shift;
    const int first = static_cast<int>(i - (t << shift)) * kSlots;
    if (first >= num_experts) {
      continue;
    }
    C values[kTopK], weights[kTopK], grad[kTopK], gradient[kTopK];
    int chosen[kTopK];
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      if (j < k) {
        const int64_t expert = experts[t * k + j];
        CUDA_KERNEL_ASSERT(expert >= 0 && expert < num_experts && "experts has an expert that does not exist");
        chosen[j] = static_cast<int>(expert);
        values[j] = static_cast<C>(logits[t * num_experts + expert]);
        grad[j] = static_cast<C>(grad_weights[t * k + j]);
      }
    }
    chosen_weights(values, k, weights);
    chosen_gradient(weights, grad, k, gradient);
    Pack output;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      C value = 0;
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        value = j < k && chosen[j] == first + slot ? gradient[j] : value;
      }
      output.value[slot] = static_cast<T>(value);
    }
    T* target = grad_logits + t * num_experts + first;
    if (packed) {
      *reinterpret_cast<Pack*>(target) = output;
    } else {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (first + slot < num_experts) {
          target[slot] = output.value[slot];
        }
      }
    }
  }
}

at::Tensor route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  check_moe_route_backward(grad_weights, logits, experts);
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t tokens = logits.size(0), num_experts = logits.size(1), k = experts.size(1);
  const at::Tensor grad = grad_weights.contiguous();
  const at::Tensor l = logits.contiguous();
  const at::Tensor chosen = experts.contiguous();
  at::Tensor grad_logits = at::empty_like(l);
  if (tokens == 0) {
    return grad_logits;
  }
  int shift = 0;
  while (kSlots << shift < num_experts) {
    ++shift;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, l.scalar_type(), "moe_route_backward", [&] {
    const auto kernel =
        k <= 2 ? &route_backward_kernel<scalar_t, 2> : &route_backward_kernel<scalar_t, kMaxTopK>;
    kernel<<<blocks_for(tokens << shift, kThreads), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        grad.const_data_ptr<scalar_t>(), l.const_data_ptr<scalar_t>(), chosen.const_data_ptr<int64_t>(), tokens,
        static_cast<int>(num_experts), static_cast<int>(k), shift, fits_packs(grad_logits),
        grad_logits.mutable_data_ptr<scalar_t>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_logits;
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_route_backward", &detrx::cuda::route_backward);
}
