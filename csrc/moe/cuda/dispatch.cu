// CUDA implementation of detrx::moe_dispatch: one launch, nothing is read on the host.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>

#include "../../cuda/warps.cuh"
#include "../moe.h"
#include "../routing.h"
#include "token_rows.cuh"

namespace detrx::cuda {
namespace {

// Rows are `units` units long, whatever is in them. k is at most kTopK.
template <typename Unit, int kTopK>
__global__ void __launch_bounds__(kThreads, kBlocks<kTopK>) dispatch_kernel(
    const Unit* __restrict__ x, MoePlaces places, unsigned units, Unit* __restrict__ output) {
  constexpr int kUnits = 2;  // of a lane at a time
  for (unsigned t = first_warp(); t < places.tokens; t += warp_stride()) {
    const Unit* source = x + uint64_t(t) * units;
    TokenRows<kTopK> rows(places, t);
#pragma unroll 1
    for (unsigned begin = 0; begin < units; begin += kUnits * kWarp) {
      const unsigned first = begin + lane();
      Unit values[kUnits];
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (first + i * kWarp < units) {
          values[i] = source[first + i * kWarp];
        }
      }
      if (begin == 0) {
        rows.share(places);
      }
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < places.k) {
          Unit* target = output + uint64_t(rows.at[j]) * units;
#pragma unroll
          for (int i = 0; i < kUnits; ++i) {
            if (first + i * kWarp < units) {
              target[first + i * kWarp] = values[i];
            }
          }
        }
      }
    }
    rows.check(places);
  }
}

template <typename Unit, int kTopK>
void launch_dispatch(const at::Tensor& x, const MoePlaces& places, const at::Tensor& output) {
  const unsigned units = x.size(1) * x.element_size() / sizeof(Unit);
  dispatch_kernel<Unit, kTopK>
      <<<blocks_for(places.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          static_cast<const Unit*>(x.const_data_ptr()), places, units,
          static_cast<Unit*>(output.mutable_data_ptr()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor dispatch(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch(x, order, place);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor source = x.contiguous(), o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  at::Tensor output = at::empty({place.numel(), x.size(1)}, source.options());
  if (output.numel() == 0) {
    return output;
  }
  if (fits_16_bytes(x.size(1) * x.element_size(), source.const_data_ptr(), output.const_data_ptr())) {
    for_top_k(places.k, [&](auto top_k) { launch_dispatch<uint4, decltype(top_k)::value>(source, places, output); });
  } else if (x.element_size() == 8) {
    launch_dispatch<uint64_t, kMaxTopK>(source, places, output);
  } else if (x.element_size() == 4) {
    launch_dispatch<uint32_t, kMaxTopK>(source, places, output);
  } else {
    launch_dispatch<uint16_t, kMaxTopK>(source, places, output);
  }
  return output;
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_dispatch", &detrx::cuda::dispatch);
}
