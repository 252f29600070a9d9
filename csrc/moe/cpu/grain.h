// What the CPU implementations of the MoE operators share.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace detrx {

// Items that are worth a thread, of `per_item` elements each.
inline int64_t grain(int64_t per_item) {
  return std::max<int64_t>(32768 / std::max<int64_t>(per_item, 1), 1);
}

// float16 and bfloat16 are computed in float32.
inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return at::isReducedFloatingType(tensor.scalar_type()) ? at::kFloat : tensor.scalar_type();
}

}  // namespace detrx
