// Schemas and argument checks of detrx::moe_route, moe_dispatch and moe_combine, and schemas of parts of expert_linear.

#include "moe.h"

#include <torch/library.h>

#include <cstdint>

#include "../checks.h"
#include "routing.h"

namespace detrx {
namespace {

void check_k(const char* op, int64_t k) {
  TORCH_CHECK_VALUE(k >= 1 && k <= kMaxTopK, op, ": k is ", k, ", expected 1 to ", kMaxTopK);
}

void check_index(
    const char* op, const char* name, const at::Tensor& index, const char* other_name, const at::Tensor& other) {
  check_dtype(op, name, index, at::kLong, "int64");
  check_same_device(op, name, index, other_name, other);
}

// `order` (T * k) and `place` (T, k) fit the T tokens of `tensor`.
void check_places(
    const char* op, const char* name, const at::Tensor& tensor, int64_t tokens, const at::Tensor& order,
    const at::Tensor& place) {
  check_rank(op, "place", place, 2, "(T, k)");
  check_k(op, place.size(1));
  check_shape(op, "place", place, {tokens, place.size(1)}, name, tensor);
  check_shape(op, "order", order, {place.numel()}, "place", place);
  check_index(op, "place", place, name, tensor);
  check_index(op, "order", order, name, tensor);
  check_count(op, "place", place, place.numel(), "assignments");
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
  check_count(op, "logits", logits, logits.size(0) * k, "assignments");
}

void check_moe_route_backward(const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  constexpr const char* op = "moe_route_backward";
  check_rank(op, "experts", experts, 2, "(T, k)");
  check_moe_route(logits, experts.size(1));
  check_shape(op, "experts", experts, {logits.size(0), experts.size(1)}, "logits", logits);
  check_shape(op, "grad_weights", grad_weights, experts.sizes(), "experts", experts);
  check_like(op, "grad_weights", grad_weights, "logits", logits);
  check_index(op, "experts", experts, "logits", logits);
}

void check_moe_dispatch(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_dispatch";
  check_rank(op, "x", x, 2, "(T, C)");
  check_floating(op, "x", x);
  check_count(op, "x", x, x.size(1), "channels");
  check_places(op, "x", x, x.size(0), order, place);
}

void check_moe_dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_dispatch_backward";
  check_rank(op, "grad_output", grad_output, 2, "(T * k, C)");
  check_floating(op, "grad_output", grad_output);
  check_count(op, "grad_output", grad_output, grad_output.size(1), "channels");
  check_places(op, "grad_output", grad_output, place.dim() == 2 ? place.size(0) : 0, order, place);
  check_shape(op, "grad_output", grad_output, {place.numel(), grad_output.size(1)}, "place", place);
}

void check_moe_combine(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  constexpr const char* op = "moe_combine";
  check_rank(op, "y", y, 2, "(T * k, C)");
  check_floating(op, "y", y);
  check_count(op, "y", y, y.size(1), "channels");
  check_rank(op, "weights", weights, 2, "(T, k)");
  check_k(op, weights.size(1));
  check_shape(op, "y", y, {weights.numel(), y.size(1)}, "weights", weights);
  check_like(op, "weights", weights, "y", y);
  check_places(op, "y", y, weights.size(0), order, place);
  check_shape(op, "place", place, weights.sizes(), "weights", weights);
}

void check_moe_combine_backward(const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights) {
  constexpr const char* op = "moe_combine_backward";
  check_shape(op, "grad_output", grad_output, {weights.size(0), y.size(1)}, "y", y);
  check_like(op, "grad_output", grad_output, "y", y);
}

MoePlaces places_of(const at::Tensor& order, const at::Tensor& place) {
  return {
      place.size(0), static_cast<int>(place.size(1)), order.const_data_ptr<int64_t>(),
      place.const_data_ptr<int64_t>()};
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
