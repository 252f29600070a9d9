// The registered operators of one device, made of its forward and its backward for either form.
#pragma once

#include <torch/library.h>

#include <tuple>

#include "ms_deform_attn.h"

namespace detrx {

// Gradients of value, points, weights and reference (undefined in the form without one).
using DeformAttnGradientTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

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
