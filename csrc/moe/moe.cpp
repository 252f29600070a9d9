// Schemas and argument checks of detrx::moe_route, moe_dispatch and moe_combine, and schemas of parts of expert_linear.

#include "moe.h"

#include <torch/library.h>

#include <cstdint>
#include <limits>

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
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", type,
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

// Rows are counted in int32, as in torch's grouped matrix products.
void check_assignments(const char* op, const char* name, const at::Tensor& tensor, int64_t assignments) {
  TORCH_CHECK_VALUE(
      assignments <= std::numeric_limits<int32_t>::max(),
      op, ": ", name, " of shape ", tensor.sizes(), " has ", assignments, " assignments, expected at most 2^31 - 1");
}

// The kernels count the channels of a row in 32 bits.
void check_channels(const char* op, const char* name, const at::Tensor& rows) {
  TORCH_CHECK_VALUE(
      rows.size(1) <= std::numeric_limits<int32_t>::max(),
      op, ": ", name, " of shape ", rows.sizes(), " has ", rows.size(1), " channels, expected at most 2^31 - 1");
}

// `order` (T * k) and `place` (T, k) fit the T tokens of `tensor`.
void check_places(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    int64_t tokens,
    const at::Tensor& order,
    const at::Tensor& place) {
  check_rank(op, "place", place, 2, "(T, k)");
  check_k(op, place.size(1));
  check_shape(op, "place", place, {tokens, place.size(1)}, name, tensor);
  check_shape(op, "order", order, {place.numel()}, "place", place);
  check_kind(op, "place", place, at::kLong, name, tensor);
  check_kind(op, "order", order, at::kLong, name, tensor);
  check_assignments(op, "place", place, place.numel());
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
  check_assignments(op, "logits", logits, logits.size(0) * k);
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

void check_moe_dispatch(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_dispatch";
  check_rank(op, "x", x, 2, "(T, C)");
  check_floating(op, "x", x);
  check_channels(op, "x", x);
  check_places(op, "x", x, x.size(0), order, place);
}

void check_moe_dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_dispatch_backward";
  check_rank(op, "grad_output", grad_output, 2, "(T * k, C)");
  check_floating(op, "grad_output", grad_output);
  check_channels(op, "grad_output", grad_output);
  check_places(op, "grad_output", grad_output, place.dim() == 2 ? place.size(0) : 0, order, place);
  check_shape(op, "grad_output", grad_output, {place.numel(), grad_output.size(1)}, "place", place);
}

void check_moe_combine(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_combine";
  check_rank(op, "y", y, 2, "(T * k, C)");
  check_floating(op, "y", y);
  check_channels(op, "y", y);
  check_rank(op, "weights", weights, 2, "(T, k)");
  check_k(op, weights.size(1));
  check_shape(op, "y", y, {weights.numel(), y.size(1)}, "weights", weights);
  check_kind(op, "weights", weights, y.scalar_type(), "y", y);
  check_places(op, "y", y, weights.size(0), order, place);
  check_shape(op, "place", place, weights.sizes(), "weights", weights);
}

void check_moe_combine_backward(const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights) {
  constexpr const char* op = "moe_combine_backward";
  check_shape(op, "grad_output", grad_output, {weights.size(0), y.size(1)}, "y", y);
  check_kind(op, "grad_output", grad_output, y.scalar_type(), "y", y);
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("moe_route(Tensor logits, int k) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("moe_route_backward(Tensor grad_weights, Tensor logits, Tensor experts) -> Tensor");
  m.def("moe_dispatch(Tensor x, Tensor order, Tensor place) -> Tensor");
  m.def("moe_dispatch_backward(Tensor grad_output, Tensor order, Tensor place) -> Tensor");
  m.def("moe_combine(Tensor y, Tensor weights, Tensor order, Tensor place) -> Tensor");
  m.def(
      "moe_combine_backward(Tensor grad_output, Tensor y, Tensor weights, Tensor order, Tensor place) "
      "-> (Tensor, Tensor)");
  // Parts of expert_linear on CUDA; see cuda/expert_bias.cu.
  m.def("_add_expert_bias_(Tensor(a!) y, Tensor bias, Tensor ends, bool relu) -> ()");
  m.def("_expert_bias_backward(Tensor grad, Tensor? rectified, Tensor ends) -> (Tensor, Tensor)");
  m.def("_sum_expert_bias_(Tensor(a!) grad_weight, Tensor sums, Tensor ends) -> Tensor");
}
