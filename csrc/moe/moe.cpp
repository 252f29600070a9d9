// Schemas and argument checks of detrx::moe_route, moe_dispatch and moe_combine.

#include "moe.h"

#include <torch/library.h>

#include "routing.h"

namespace detrx {
namespace {

void check_rank(const char* op, const char* name, const at::Tensor& tensor, int64_t rank, const char* expected) {
  TORCH_CHECK_VALUE(
      tensor.dim() == rank, op, ": ", name, " has shape ", tensor.sizes(), ", expected ", expected);
}

void check_shape(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    at::IntArrayRef expected,
    const char* reason_name,
    const at::Tensor& reason) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == expected,
      op, ": ", name, " has shape ", tensor.sizes(), ", expected ", expected, " to fit ", reason_name, " of shape ",
      reason.sizes());
}

void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(
      tensor.is_floating_point(), op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", tensor.scalar_type(),
      ", expected float32, float64, float16 or bfloat16");
}

// `tensor` has the dtype `type` and the device of `other`.
void check_kind(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    at::ScalarType type,
    const char* other_name,
    const at::Tensor& other) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == type, op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", tensor.scalar_type(),
      ", expected ", type, " beside ", other_name, " of shape ", other.sizes(), ", ", other.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.device() == other.device(),
      op, ": ", name, " of shape ", tensor.sizes(), " is on ", tensor.device(), ", ", other_name, " of shape ",
      other.sizes(), " on ", other.device());
}

void check_k(const char* op, int64_t k) {
  TORCH_CHECK_VALUE(k >= 1 && k <= kMaxTopK, op, ": k is ", k, ", expected 1 to ", kMaxTopK);
}

}  // namespace

void check_moe_route(const at::Tensor& logits, int64_t k) {
  constexpr const char* op = "moe_route";
  check_rank(op, "logits", logits, 2, "(T, E)");
  check_floating(op, "logits", logits);
  check_k(op, k);
  TORCH_CHECK_VALUE(
      k <= logits.size(1), op, ": k is ", k, ", more than the experts in logits of shape ", logits.sizes(),
      " (T, E)");
  TORCH_CHECK_VALUE(
      logits.size(1) <= kMaxExperts, op, ": logits of shape ", logits.sizes(), " (T, E) has ", logits.size(1),
      " experts, expected at most ", kMaxExperts);
}

void check_moe_route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  constexpr const char* op = "moe_route_backward";
  check_rank(op, "experts", experts, 2, "(T, k)");
  check_moe_route(logits, experts.size(1));
  check_shape(op, "experts", experts, {logits.size(0), experts.size(1)}, "logits", logits);
  check_shape(op, "grad_weights", grad_weights, experts.sizes(), "experts", experts);
  check_kind(op, "grad_weights", grad_weights, logits.scalar_type(), "logits", logits);
  check_kind(op, "experts", experts, at::kLong, "logits", logits);
}

void check_moe_dispatch(const at::Tensor& x, const at::Tensor& order, int64_t k) {
  constexpr const char* op = "moe_dispatch";
  check_rank(op, "x", x, 2, "(T, C)");
  check_floating(op, "x", x);
  check_k(op, k);
  check_shape(op, "order", order, {x.size(0) * k}, "x", x);
  check_kind(op, "order", order, at::kLong, "x", x);
}

void check_moe_dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, int64_t k) {
  constexpr const char* op = "moe_dispatch_backward";
  check_rank(op, "grad_output", grad_output, 2, "(T * k, C)");
  check_floating(op, "grad_output", grad_output);
  check_k(op, k);
  TORCH_CHECK_VALUE(
      grad_output.size(0) % k == 0, op, ": grad_output has shape ", grad_output.sizes(),
      ", expected (T * k, C) for k = ", k);
  check_shape(op, "order", order, {grad_output.size(0)}, "grad_output", grad_output);
  check_kind(op, "order", order, at::kLong, "grad_output", grad_output);
}

void check_moe_combine(const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order) {
  constexpr const char* op = "moe_combine";
  check_rank(op, "y", y, 2, "(T * k, C)");
  check_floating(op, "y", y);
  check_rank(op, "weights", weights, 2, "(T, k)");
  check_k(op, weights.size(1));
  check_shape(op, "y", y, {weights.numel(), y.size(1)}, "weights", weights);
  check_shape(op, "order", order, {weights.numel()}, "weights", weights);
  check_kind(op, "weights", weights, y.scalar_type(), "y", y);
  check_kind(op, "order", order, at::kLong, "y", y);
}

void check_moe_combine_backward(const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights) {
  constexpr const char* op = "moe_combine_backward";
  check_shape(op, "grad_output", grad_output, {weights.size(0), y.size(1)}, "y", y);
  check_kind(op, "grad_output", grad_output, y.scalar_type(), "y", y);
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("moe_route(Tensor logits, int k) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("moe_route_backward(Tensor grad_weights, Tensor logits, Tensor experts) -> Tensor");
  m.def("moe_dispatch(Tensor x, Tensor order, int k) -> Tensor");
  m.def("moe_dispatch_backward(Tensor grad_output, Tensor order, int k) -> Tensor");
  m.def("moe_combine(Tensor y, Tensor weights, Tensor order) -> Tensor");
  m.def("moe_combine_backward(Tensor grad_output, Tensor y, Tensor weights, Tensor order) -> (Tensor, Tensor)");
}
