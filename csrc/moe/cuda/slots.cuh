// How the kernels of moe_route, forward and backward, divide the experts of a token among lanes.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../cuda/warps.cuh"

namespace detrx::cuda {

constexpr int kSlots = 8;  // experts that a lane looks at; kMaxExperts / kSlots lanes fit into a warp

// Whether every kSlots logits can be read, or written, as one Pack.
inline bool fits_packs(const at::Tensor& logits) {
  return logits.size(1) % kSlots == 0 && fits_16_bytes(kSlots * logits.element_size(), logits.const_data_ptr());
}

}  // namespace detrx::cuda
