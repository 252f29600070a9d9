// The parts that the operators are made of, one file each. All take contiguous tensors.
#pragma once

#include "../../reduced_float.h"
#include "../inputs.h"

namespace detrx::cpu {

// Fills output (B, Q, M * D).
template <typename T>
void forward(const DeformAttnInputs<T, Compute<T>>& inputs, T* output);

// Fills grad_points, grad_weights and, where there is one, grad_reference, and adds to grad_value.
template <typename T>
void backward(const DeformAttnInputs<T, Compute<T>>& inputs, const DeformAttnGradients<T, Compute<T>>& gradients);

#define DETRX_FOR_EACH_TYPE(MACRO) \
  MACRO(double)                    \
  MACRO(float)                     \
  MACRO(Float16)                   \
  MACRO(BFloat16)

}  // namespace detrx::cpu
