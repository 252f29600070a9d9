// The dtype of the arithmetic on a tensor, as Compute (reduced_float.h) is that of a C++ type.
#pragma once

#include <ATen/core/Tensor.h>

namespace detrx {

// float16 and bfloat16 are computed in float32.
inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return at::isReducedFloatingType(tensor.scalar_type()) ? at::kFloat : tensor.scalar_type();
}

}  // namespace detrx
