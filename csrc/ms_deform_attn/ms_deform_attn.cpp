// Schemas of detrx::ms_deform_attn and detrx::ms_deform_attn_fused, argument checks, and what CPU and CUDA do alike.

#include "ms_deform_attn.h"

#include <ATen/ops/empty.h>

#include <limits>

#include "../checks.h"
#include "../compute_type.h"

namespace detrx {
namespace {

// The names by which errors call the operator and its arguments.
struct Names {
  const char* op;
  const char* points;
  const char* weights;
};

Names names_of(const DeformAttnArguments& arguments) {
  return arguments.reference ? Names{"ms_deform_attn_fused", "offsets", "logits"}
                             : Names{"ms_deform_attn", "sampling_locations", "attention_weights"};
}

void check_index(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& value) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kInt,
      op, ": ", name, " has dtype ", tensor.scalar_type(), ", expected int64 or int32");
  check_same_device(op, name, tensor, "value", value);
}

// Reads the level sizes, so only where that costs no synchronisation; CUDA kernels assert it themselves.
void check_levels(
    const char* op, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index, const at::Tensor& value) {
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  int64_t total = 0;
  for (int64_t level = 0; level < shapes.size(0); ++level) {
    const int64_t height = shapes.const_data_ptr<int64_t>()[2 * level];
    const int64_t width = shapes.const_data_ptr<int64_t>()[2 * level + 1];
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(
        height >= 0 && width >= 0 && height <= limit && width <= limit,
        op, ": spatial_shapes has a level of ", height, " x ", width);
    const int64_t start = starts.const_data_ptr<int64_t>()[level];
    TORCH_CHECK_VALUE(
        start == total,
        op, ": level_start_index[", level, "] is ", start, ", expected ", total,
        ", the number of tokens in the levels of spatial_shapes before it");
    total += height * width;
  }
  TORCH_CHECK_VALUE(
      total == value.size(1),
      op, ": the levels of spatial_shapes of shape ", shapes.sizes(), " hold ", total, " tokens, but value of shape ",
      value.sizes(), " (B, S, M, D) has S = ", value.size(1));
}

void check_reference(const DeformAttnSizes& n, const DeformAttnArguments& arguments) {
  const at::Tensor& reference = *arguments.reference;
  const at::Tensor& value = arguments.value;
  const Names name = names_of(arguments);
  const char* op = name.op;
  TORCH_CHECK_VALUE(
      reference.dim() == 4 && (reference.size(3) == 2 || reference.size(3) == 4),
      op, ": reference has shape ", reference.sizes(), ", expected (B, Q, L, 2) or (B, Q, L, 4) for value of shape ",
      value.sizes());
  check_shape(op, "reference", reference, {n.B, n.Q, n.L, reference.size(3)}, name.points, arguments.points);
  const bool wider = at::isReducedFloatingType(value.scalar_type()) && reference.scalar_type() == at::kFloat;
  if (wider) {
    check_same_device(op, "reference", reference, "value", value);
  } else {
    check_like(op, "reference", reference, "value", value);
  }
}

}  // namespace

DeformAttnSizes check_arguments(const DeformAttnArguments& arguments) {
  const auto& [value, spatial_shapes, level_start_index, points, weights, reference] = arguments;
  const Names name = names_of(arguments);
  check_rank(name.op, "value", value, 4, "(B, S, M, D)");
  check_rank(name.op, name.points, points, 6, "(B, Q, M, L, P, 2)");
  const DeformAttnSizes n{value.size(0), value.size(1), value.size(2), value.size(3),
                          points.size(1), points.size(3), points.size(4)};
  check_shape(name.op, name.points, points, {n.B, n.Q, n.M, n.L, n.P, 2}, "value", value);
  check_shape(name.op, name.weights, weights, {n.B, n.Q, n.M, n.L, n.P}, name.points, points);
  check_shape(name.op, "spatial_shapes", spatial_shapes, {n.L, 2}, name.points, points);
  check_shape(name.op, "level_start_index", level_start_index, {n.L}, "spatial_shapes", spatial_shapes);
  check_index(name.op, "spatial_shapes", spatial_shapes, value);
  check_index(name.op, "level_start_index", level_start_index, value);
  check_like(name.op, name.points, points, "value", value);
  check_like(name.op, name.weights, weights, "value", value);
  if (reference) {
    check_reference(n, arguments);
  }
  check_count(name.op, "value", value, n.S, "tokens");
  if (value.is_cpu() || n.L == 0) {
    check_levels(name.op, spatial_shapes, level_start_index, value);
  }
  return n;
}

void check_grad_output(const DeformAttnArguments& arguments, const DeformAttnSizes& n, const at::Tensor& grad_output) {
  const char* op = names_of(arguments).op;
  check_shape(op, "grad_output", grad_output, {n.B, n.Q, n.M * n.D}, "value", arguments.value);
  check_like(op, "grad_output", grad_output, "value", arguments.value);
}

PreparedArguments::PreparedArguments(
    const DeformAttnArguments& arguments, const DeformAttnSizes& sizes, at::Tensor (*contiguous)(const at::Tensor&))
    : sizes_(sizes),
      value_(contiguous(arguments.value)),
      spatial_shapes_(arguments.spatial_shapes.to(at::kLong).contiguous()),
      level_start_index_(arguments.level_start_index.to(at::kLong).contiguous()),
      points_(contiguous(arguments.points)),
      weights_(contiguous(arguments.weights)) {
  if (arguments.reference) {
    reference_ = contiguous(arguments.reference->to(compute_type(value_)));
  }
}

DeformAttnGradientTensors finish_gradients(
    const DeformAttnArguments& arguments, const at::Tensor& grad_value, const at::Tensor& grad_points,
    const at::Tensor& grad_weights, const at::Tensor& grad_reference) {
  at::Tensor summed;
  if (grad_reference.defined()) {
    summed = grad_reference.sum(2).to(arguments.reference->scalar_type());
  } else if (arguments.reference) {
    summed = at::empty({0}, arguments.reference->options());
  }
  return {grad_value.to(arguments.value.scalar_type()), grad_points, grad_weights, summed};
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor reference, "
      "Tensor offsets, Tensor logits) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor reference, Tensor offsets, Tensor logits, bool reference_needs_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
