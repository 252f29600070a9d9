// detrx::ms_deform_attn and detrx::ms_deform_attn_fused on the CPU: tensors in, tensors out. float16 and bfloat16 are
// read and written as they are and computed in float32.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../../compute_type.h"
#include "../../cpu/huge_pages.h"
#include "../ms_deform_attn.h"
#include "kernels.h"

namespace detrx::cpu {
namespace {

// The kernels' own types for those of torch.
template <typename T>
struct KernelType {
  typedef T type;
};
template <>
struct KernelType<at::Half> {
  typedef Float16 type;
};
template <>
struct KernelType<at::BFloat16> {
  typedef BFloat16 type;
};

at::Tensor contiguous(const at::Tensor& tensor) {
  return tensor.contiguous();
}

at::Tensor run_forward(const DeformAttnArguments& arguments) {
  const DeformAttnSizes n = check_arguments(arguments);
  const at::Tensor& value = arguments.value;
  const PreparedArguments prepared(arguments, n, &contiguous);
  const at::Tensor output = in_huge_pages(at::empty({n.B, n.Q, n.M * n.D}, value.options()));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    typedef KernelType<scalar_t>::type T;
    forward(prepared.inputs<T>(), static_cast<T*>(output.mutable_data_ptr()));
  });
  return output;
}

DeformAttnGradientTensors run_backward(
    const DeformAttnArguments& arguments, const at::Tensor& grad_output, bool reference_needs_grad) {
  const DeformAttnSizes n = check_arguments(arguments);
  check_grad_output(arguments, n, grad_output);
  const at::Tensor& value = arguments.value;
  const PreparedArguments prepared(arguments, n, &contiguous);
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor grad_value =
      in_huge_pages(at::empty(value.sizes(), value.options().dtype(compute_type(value)))).zero_();
  const at::Tensor grad_points = in_huge_pages(at::empty(arguments.points.sizes(), value.options()));
  const at::Tensor grad_weights = in_huge_pages(at::empty(arguments.weights.sizes(), value.options()));
  at::Tensor grad_reference;
  if (reference_needs_grad) {
    const at::Tensor& reference = *arguments.reference;
    grad_reference = at::zeros({n.B, n.Q, n.M, n.L, reference.size(3)}, grad_value.options());
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
    typedef KernelType<scalar_t>::type T;
    typedef Compute<T> C;
    backward(
        prepared.inputs<T>(),
        DeformAttnGradients<T, C>{
            static_cast<const T*>(grad.const_data_ptr()), grad_value.mutable_data_ptr<C>(),
            static_cast<T*>(grad_points.mutable_data_ptr()), static_cast<T*>(grad_weights.mutable_data_ptr()),
            reference_needs_grad ? grad_reference.mutable_data_ptr<C>() : nullptr});
  });
  return finish_gradients(arguments, grad_value, grad_points, grad_weights, grad_reference);
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  detrx::DeformAttnOperators<&detrx::cpu::run_forward, &detrx::cpu::run_backward>::register_in(m);
}
