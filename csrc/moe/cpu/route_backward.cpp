// CPU implementation of the backward pass of detrx::moe_route.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cstdint>

#include "../../compute_type.h"
#include "../moe.h"
#include "../routing.h"
#include "grain.h"

namespace detrx::cpu {
namespace {

at::Tensor route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  check_moe_route_backward(grad_weights, logits, experts);
  const int64_t tokens = logits.size(0), num_experts = logits.size(1), k = experts.size(1);
  const at::Tensor grad = grad_weights.to(compute_type(logits)).contiguous();
  const at::Tensor l = logits.to(compute_type(logits)).contiguous();
  const at::Tensor chosen = experts.contiguous();
  at::Tensor grad_logits = at::zeros_like(l);
  AT_DISPATCH_FLOATING_TYPES(l.scalar_type(), "moe_route_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* source = l.const_data_ptr<scalar_t>();
    const int64_t* e = chosen.const_data_ptr<int64_t>();
    scalar_t* target = grad_logits.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, tokens, grain(16 * k), [&](int64_t begin, int64_t end) {
      scalar_t values[kMaxTopK], weights[kMaxTopK], weight_grad[kMaxTopK], gradient[kMaxTopK];
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t expert = e[t * k + j];
          TORCH_CHECK_VALUE(
              expert >= 0 && expert < num_experts, "moe_route_backward: experts[", t, ", ", j, "] is ", expert,
              ", expected 0 to ", num_experts - 1);
          values[j] = source[t * num_experts + expert];
          weight_grad[j] = g[t * k + j];
        }
        chosen_weights(values, static_cast<int>(k), weights);
        chosen_gradient(weights, weight_grad, static_cast<int>(k), gradient);
        for (int64_t j = 0; j < k; ++j) {
          target[t * num_experts + e[t * k + j]] = gradient[j];
        }
      }
    });
  });
  return grad_logits.to(logits.scalar_type());
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_route_backward", &detrx::cpu::route_backward);
}
