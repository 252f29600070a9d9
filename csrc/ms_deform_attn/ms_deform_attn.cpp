// Schema and argument checks of detrx::ms_deform_attn.

#include "ms_deform_attn.h"

#include <torch/library.h>

#include <limits>

namespace detrx {
namespace {

void check_shape(
    const char* name,
    const at::Tensor& tensor,
    at::IntArrayRef expected,
    const char* reason_name,
    const at::Tensor& reason) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == expected,
      "ms_deform_attn: ", name, " has shape ", tensor.sizes(), ", expected ", expected, " to fit ", reason_name,
      " of shape ", reason.sizes());
}

void check_index(const char* name, const at::Tensor& tensor, const at::Tensor& value) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kInt,
      "ms_deform_attn: ", name, " has dtype ", tensor.scalar_type(), ", expected int64 or int32");
  TORCH_CHECK_VALUE(
      tensor.device() == value.device(),
      "ms_deform_attn: ", name, " is on ", tensor.device(), ", value on ", value.device());
}

void check_float(const char* name, const at::Tensor& tensor, const at::Tensor& value) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == value.scalar_type(),
      "ms_deform_attn: ", name, " has dtype ", tensor.scalar_type(), ", value has ", value.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.device() == value.device(),
      "ms_deform_attn: ", name, " is on ", tensor.device(), ", value on ", value.device());
}

// Reads the level sizes, so only where that costs no synchronisation; CUDA kernels assert it themselves.
void check_levels(const at::Tensor& spatial_shapes, const at::Tensor& level_start_index, int64_t tokens) {
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  int64_t total = 0;
  for (int64_t level = 0; level < shapes.size(0); ++level) {
    const int64_t height = shapes.const_data_ptr<int64_t>()[2 * level];
    const int64_t width = shapes.const_data_ptr<int64_t>()[2 * level + 1];
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(
        height >= 0 && width >= 0 && height <= limit && width <= limit,
        "ms_deform_attn: spatial_shapes has a level of ", height, " x ", width);
    const int64_t start = starts.const_data_ptr<int64_t>()[level];
    TORCH_CHECK_VALUE(
        start == total,
        "ms_deform_attn: level_start_index[", level, "] is ", start, ", expected ", total,
        ", the number of tokens in the levels of spatial_shapes before it");
    total += height * width;
  }
  TORCH_CHECK_VALUE(
      total == tokens,
      "ms_deform_attn: the levels of spatial_shapes hold ", total, " tokens, but value of shape (B, S, M, D) has S = ",
      tokens);
}

}  // namespace

DeformAttnSizes check_ms_deform_attn(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  TORCH_CHECK_VALUE(value.dim() == 4, "ms_deform_attn: value has shape ", value.sizes(), ", expected (B, S, M, D)");
  TORCH_CHECK_VALUE(
      sampling_locations.dim() == 6,
      "ms_deform_attn: sampling_locations has shape ", sampling_locations.sizes(), ", expected (B, Q, M, L, P, 2)");
  const DeformAttnSizes n{
      value.size(0), value.size(1), value.size(2), value.size(3),
      sampling_locations.size(1), sampling_locations.size(3), sampling_locations.size(4)};
  check_shape("sampling_locations", sampling_locations, {n.B, n.Q, n.M, n.L, n.P, 2}, "value", value);
  check_shape(
      "attention_weights", attention_weights, {n.B, n.Q, n.M, n.L, n.P}, "sampling_locations", sampling_locations);
  check_shape("spatial_shapes", spatial_shapes, {n.L, 2}, "sampling_locations", sampling_locations);
  check_shape("level_start_index", level_start_index, {n.L}, "spatial_shapes", spatial_shapes);
  check_index("spatial_shapes", spatial_shapes, value);
  check_index("level_start_index", level_start_index, value);
  check_float("sampling_locations", sampling_locations, value);
  check_float("attention_weights", attention_weights, value);
  TORCH_CHECK_VALUE(
      n.S <= std::numeric_limits<int32_t>::max(), "ms_deform_attn: value has more than 2^31 - 1 tokens: ", n.S);
  if (value.is_cpu()) {
    check_levels(spatial_shapes, level_start_index, n.S);
  }
  return n;
}

void check_ms_deform_attn_grad(const DeformAttnSizes& n, const at::Tensor& value, const at::Tensor& grad_output) {
  check_shape("grad_output", grad_output, {n.B, n.Q, n.M * n.D}, "value", value);
  check_float("grad_output", grad_output, value);
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}
