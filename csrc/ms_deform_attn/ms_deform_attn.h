// The operators of multi-scale deformable attention: what those of CPU and CUDA share around their kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <tuple>

#include "../reduced_float.h"
#include "inputs.h"

namespace detrx {

// The arguments of ms_deform_attn: `points` are sampling_locations (B, Q, M, L, P, 2), `weights` are attention_weights
// (B, Q, M, L, P). Those of ms_deform_attn_fused: `points` are raw offsets, `weights` are logits, and `reference` is
// (B, Q, L, 2 or 4).
struct DeformAttnArguments {
  const at::Tensor& value;
  const at::Tensor& spatial_shapes;
  const at::Tensor& level_start_index;
  const at::Tensor& points;
  const at::Tensor& weights;
  const at::Tensor* reference = nullptr;
};

// Throw an error that names the argument and both shapes where the arguments do not fit together.
DeformAttnSizes check_arguments(const DeformAttnArguments& arguments);
void check_grad_output(
    const DeformAttnArguments& arguments, const DeformAttnSizes& sizes, const at::Tensor& grad_output);

// The arguments as kernels take them.
class PreparedArguments {
 public:
  // `contiguous` returns a tensor as the device's kernels read it, a copy where it is not like that.
  PreparedArguments(
      const DeformAttnArguments& arguments, const DeformAttnSizes& sizes, at::Tensor (*contiguous)(const at::Tensor&));

  template <typename T>
  DeformAttnInputs<T, Compute<T>> inputs() const {
    return {sizes_,
            static_cast<const T*>(value_.const_data_ptr()),
            spatial_shapes_.const_data_ptr<int64_t>(),
            level_start_index_.const_data_ptr<int64_t>(),
            static_cast<const T*>(points_.const_data_ptr()),
            static_cast<const T*>(weights_.const_data_ptr()),
            reference_.defined() ? reference_.const_data_ptr<Compute<T>>() : nullptr,
            reference_.defined() ? static_cast<int>(reference_.size(3)) : 0};
  }

 private:
  DeformAttnSizes sizes_;
  at::Tensor value_, spatial_shapes_, level_start_index_, points_, weights_, reference_;
};

// Gradients of value, points, weights and reference (undefined in the form without one).
using DeformAttnGradientTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// From what kernels write to what the operators return: the gradient of the value in its own dtype, and that of the
// reference, which is undefined where nobody asks for it, summed over the heads.
DeformAttnGradientTensors finish_gradients(
    const DeformAttnArguments& arguments, const at::Tensor& grad_value, const at::Tensor& grad_points,
    const at::Tensor& grad_weights, const at::Tensor& grad_reference);

// The operators of one device, made of its forward and its backward for either form.
template <
    at::Tensor (*kForward)(const DeformAttnArguments&),
    DeformAttnGradientTensors (*kBackward)(
        const DeformAttnArguments&, const at::Tensor& grad_output, bool reference_needs_grad)>
struct DeformAttnOperators {
  static at::Tensor forward(
      const at::Tensor& value,
      const at::Tensor& spatial_shapes,
      const at::Tensor& level_start_index,
      const at::Tensor& sampling_locations,
      const at::Tensor& attention_weights) {
    return kForward({value, spatial_shapes, level_start_index, sampling_locations, attention_weights});
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
      const at::Tensor& grad_output,
      const at::Tensor& value,
      const at::Tensor& spatial_shapes,
      const at::Tensor& level_start_index,
      const at::Tensor& sampling_locations,
      const at::Tensor& attention_weights) {
    const auto [grad_value, grad_locations, grad_weights, unused] = kBackward(
        {value, spatial_shapes, level_start_index, sampling_locations, attention_weights}, grad_output, false);
    return {grad_value, grad_locations, grad_weights};
  }

  static at::Tensor fused_forward(
      const at::Tensor& value,
      const at::Tensor& spatial_shapes,
      const at::Tensor& level_start_index,
      const at::Tensor& reference,
      const at::Tensor& offsets,
      const at::Tensor& logits) {
    return kForward({value, spatial_shapes, level_start_index, offsets, logits, &reference});
  }

  static DeformAttnGradientTensors fused_backward(
      const at::Tensor& grad_output,
      const at::Tensor& value,
      const at::Tensor& spatial_shapes,
      const at::Tensor& level_start_index,
      const at::Tensor& reference,
      const at::Tensor& offsets,
      const at::Tensor& logits,
      bool reference_needs_grad) {
    return kBackward(
        {value, spatial_shapes, level_start_index, offsets, logits, &reference}, grad_output, reference_needs_grad);
  }

  static void register_in(torch::Library& library) {
    library.impl("ms_deform_attn", &forward);
    library.impl("ms_deform_attn_backward", &backward);
    library.impl("ms_deform_attn_fused", &fused_forward);
    library.impl("ms_deform_attn_fused_backward", &fused_backward);
  }
};

}  // namespace detrx
