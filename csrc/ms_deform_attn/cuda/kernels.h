// The parts that the operators are made of, one file each. All run on the current stream of the current device without
// waiting for it, take contiguous tensors whose memory begins on 16 bytes, and at least one point and one value.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../../reduced_float.h"
#include "../inputs.h"

namespace detrx::cuda {

// Fills output (B, Q, M * D). There may be no values here.
template <typename T>
void forward(const DeformAttnInputs<T, Compute<T>>& args, T* output);

// Fills grad_points and grad_weights, adds to grad_reference where there is one and, with `values`, to grad_value.
template <typename T>
void backward(
    const DeformAttnInputs<T, Compute<T>>& args, const DeformAttnGradients<T, Compute<T>>& grads, bool values);

// The same for grad_value alone, for many points. `grad_output` is (B, Q, M * D).
template <typename T>
void grad_value_in_blocks(const DeformAttnInputs<T, Compute<T>>& args, const T* grad_output, Compute<T>* grad_value);

// Whether it is the faster way to grad_value, of type Compute<T>.
template <typename T>
bool sums_grad_value_in_blocks(const DeformAttnSizes& sizes);

// Fills grad_value (B, S, M, D), of type Compute<T>, with the same bits every time.
template <typename T>
void deterministic_grad_value(
    const DeformAttnInputs<T, Compute<T>>& args, const T* grad_output, at::Tensor& grad_value);

#define DETRX_FOR_EACH_TYPE(MACRO) \
  MACRO(double)                    \
  MACRO(float)                     \
  MACRO(c10::Half)                 \
  MACRO(c10::BFloat16)

}  // namespace detrx::cuda
