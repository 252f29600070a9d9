// detrx::ms_deform_attn and detrx::ms_deform_attn_fused on CUDA: tensors in, tensors out.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstdint>
#include <limits>

#include "../../compute_type.h"
#include "../ms_deform_attn.h"
#include "kernels.h"
#include "tile.cuh"

namespace detrx::cuda {
namespace {

// Contiguous and on 16 bytes: a slice of a larger tensor may begin anywhere.
at::Tensor aligned(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 ? contiguous.clone() : contiguous;
}

DeformAttnSizes check_sizes(const DeformAttnArguments& arguments) {
  const DeformAttnSizes n = check_arguments(arguments);
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(n.L <= kMaxLevels, "ms_deform_attn: ", n.L, " levels, expected at most ", kMaxLevels, " on CUDA");
  TORCH_CHECK_VALUE(
      n.B <= limit && n.M <= limit && n.L * n.P <= limit,
      "ms_deform_attn: more than 2^31 - 1 images (", n.B, "), heads (", n.M, ") or points (", n.L, " x ", n.P, ")");
  return n;
}

at::Tensor run_forward(const DeformAttnArguments& arguments) {
  const DeformAttnSizes n = check_sizes(arguments);
  const at::Tensor& value = arguments.value;
  const c10::cuda::CUDAGuard guard(value.device());
  const PreparedArguments prepared(arguments, n, &aligned);
  if (n.L * n.P == 0) {
    return at::zeros({n.B, n.Q, n.M * n.D}, value.options());
  }
  at::Tensor output = at::empty({n.B, n.Q, n.M * n.D}, value.options());
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
      forward(prepared.inputs<scalar_t>(), output.mutable_data_ptr<scalar_t>());
    });
  }
  return output;
}

DeformAttnGradientTensors run_backward(
    const DeformAttnArguments& arguments, const at::Tensor& grad_output, bool reference_needs_grad) {
  const DeformAttnSizes n = check_sizes(arguments);
  check_grad_output(arguments, n, grad_output);
  const at::Tensor& value = arguments.value;
  const c10::cuda::CUDAGuard guard(value.device());
  const PreparedArguments prepared(arguments, n, &aligned);
  const at::Tensor grad = aligned(grad_output);
  const auto compute = value.options().dtype(compute_type(value));
  const bool any = value.numel() > 0 && arguments.points.numel() > 0;
  const bool deterministic = any && at::globalContext().deterministicAlgorithms();
  const auto make = [](const at::Tensor& like, const at::TensorOptions& options, bool filled) {
    return filled ? at::empty(like.sizes(), options) : at::zeros(like.sizes(), options);
  };
  at::Tensor grad_value = make(value, compute, deterministic);
  const at::Tensor grad_points = make(arguments.points, value.options(), any);
  const at::Tensor grad_weights = make(arguments.weights, value.options(), any);
  at::Tensor grad_reference;
  if (reference_needs_grad) {
    grad_reference = at::zeros({n.B, n.Q, n.M, n.L, arguments.reference->size(3)}, compute);
  }
  if (any) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
      typedef Compute<scalar_t> C;
      const DeformAttnInputs<scalar_t, C> inputs = prepared.inputs<scalar_t>();
      const DeformAttnGradients<scalar_t, C> gradients{
          grad.const_data_ptr<scalar_t>(), grad_value.mutable_data_ptr<C>(), grad_points.mutable_data_ptr<scalar_t>(),
          grad_weights.mutable_data_ptr<scalar_t>(),
          reference_needs_grad ? grad_reference.mutable_data_ptr<C>() : nullptr};
      const bool in_blocks = !deterministic && sums_grad_value_in_blocks<scalar_t>(n);
      backward(inputs, gradients, /*values=*/!deterministic && !in_blocks);
      if (deterministic) {
        deterministic_grad_value(inputs, gradients.grad_output, grad_value);
      } else if (in_blocks) {
        grad_value_in_blocks(inputs, gradients.grad_output, gradients.grad_value);
      }
    });
  }
  return finish_gradients(arguments, grad_value, grad_points, grad_weights, grad_reference);
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  detrx::DeformAttnOperators<&detrx::cuda::run_forward, &detrx::cuda::run_backward>::register_in(m);
}
