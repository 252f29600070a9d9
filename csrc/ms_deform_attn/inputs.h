// What the kernels of both devices are given.
#pragma once

#include <cstdint>

namespace detrx {

// value (B, S, M, D), L levels of P points each for every one of the Q queries and M heads -> output (B, Q, M * D)
struct DeformAttnSizes {
  int64_t B, S, M, D, Q, L, P;
};

// All tensors are contiguous; `spatial_shapes` and `level_start_index` are int64. T is the type of the tensors, C that
// of the arithmetic.
template <typename T, typename C>
struct DeformAttnInputs {
  DeformAttnSizes sizes;
  const T* value;
  const int64_t* spatial_shapes;
  const int64_t* level_start_index;
  const T* points;
  const T* weights;
  const C* reference;   // of the fused operator, else null
  int reference_size;   // 2 or 4, 0 without a reference
};

template <typename T, typename C>
struct DeformAttnGradients {
  const T* grad_output;
  C* grad_value;      // zero on entry
  T* grad_points;
  T* grad_weights;
  C* grad_reference;  // (B, Q, M, L, reference_size), to be summed over the heads; null where nobody asks for it
};

}  // namespace detrx
