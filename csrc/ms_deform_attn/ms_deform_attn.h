// Multi-scale deformable attention: what the operator's CPU and CUDA sides share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace detrx {

// value (B, S, M, D), sampling_locations (B, Q, M, L, P, 2), attention_weights (B, Q, M, L, P) -> output (B, Q, M * D)
struct DeformAttnSizes {
  int64_t B, S, M, D, Q, L, P;
};

// Throws an error that names the argument and both shapes where the arguments do not fit together.
DeformAttnSizes check_ms_deform_attn(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights);

void check_ms_deform_attn_grad(const DeformAttnSizes& sizes, const at::Tensor& value, const at::Tensor& grad_output);

// All tensors are contiguous; `spatial_shapes` and `level_start_index` are int64.
template <typename T>
struct DeformAttnForward {
  DeformAttnSizes sizes;
  const T* value;
  const int64_t* spatial_shapes;
  const int64_t* level_start_index;
  const T* locations;
  const T* attention;
  T* output;
};

// Sums of many terms are kept in type `Sum`.
template <typename T, typename Sum = T>
struct DeformAttnBackward {
  DeformAttnSizes sizes;
  const T* grad_output;
  const T* value;
  const int64_t* spatial_shapes;
  const int64_t* level_start_index;
  const T* locations;
  const T* attention;
  Sum* grad_value;  // zero on entry
  T* grad_locations;
  T* grad_attention;
};

}  // namespace detrx
