// CUDA implementation of detrx::moe_dispatch and moe_combine: one launch each, nothing is read on the host, and no sum
// of floats is shared among warps, so that every result is the same in every run. float16 and bfloat16 are computed in
// float32.
//
// In all kernels one warp works on a token, which it reads or writes once, and on the k rows of its assignments.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

#include "../../cuda/warps.cuh"
#include "../../reduced_float.h"
#include "../moe.h"
#include "../routing.h"

namespace detrx::cuda {
namespace {

// Blocks that a multiprocessor is to hold: five of them keep more bytes on their way than the memory's latency asks for.
// Where k is large, fewer do, as every warp has more loads on their way.
template <int kTopK>
constexpr int kBlocks = kTopK <= 2 ? 5 : 1;

// The rows of one token: lane j reads that of its assignment j, and tells the other lanes. What does not depend on the
// rows is best loaded between construction and share().
template <int kTopK>
struct TokenRows {
  unsigned at[kTopK];  // rows and assignments fit into 31 bits
  unsigned assignment;
  int64_t own, inverse;

  __device__ __forceinline__ TokenRows(const MoePlaces& places, unsigned token)
      : assignment(token * places.k + lane()), own(lane() < places.k ? places.place[assignment] : 0) {}

  __device__ __forceinline__ void share(const MoePlaces& places) {
    const bool exists = own >= 0 && own < places.tokens * places.k;
    own = exists ? own : 0;
    inverse = exists && lane() < places.k ? places.order[own] : -1;
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      at[j] = __shfl_sync(kAllLanes, static_cast<unsigned>(own), j);
    }
  }

  // Where this holds for all tokens, no row is there twice, and none is missing. Called last: an assertion costs
  // registers where much is in use, and nothing has to wait for the inverse.
  __device__ __forceinline__ void check(const MoePlaces& places) const {
    CUDA_KERNEL_ASSERT(
        (lane() >= places.k || inverse == assignment) && "order and place are no inverse permutations");
  }
};

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

// kCount channels are read and written together: 16 bytes, or one where rows are not aligned to that.
template <typename T, int kCount, int kTopK>
__global__ void __launch_bounds__(kThreads, kBlocks<kTopK>) combine_kernel(MoeCombine<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int k = args.places.k;
  const unsigned packs = args.channels / kCount;
  const Pack* __restrict__ y = reinterpret_cast<const Pack*>(args.y);
  Pack* __restrict__ output = reinterpret_cast<Pack*>(args.output);
  for (unsigned t = first_warp(); t < args.places.tokens; t += warp_stride()) {
    TokenRows<kTopK> rows(args.places, t);
    C weights[kTopK];
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      weights[j] = j < k && args.weights ? static_cast<C>(args.weights[t * k + j]) : C(1);
    }
    rows.share(args.places);
#pragma unroll 1
    for (unsigned p = lane(); p < packs; p += kWarp) {
      Pack packs_of[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          packs_of[j] = y[uint64_t(rows.at[j]) * packs + p];
        }
      }
      C sum[kCount] = {};
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            sum[c] += weights[j] * static_cast<C>(packs_of[j].value[c]);
          }
        }
      }
      Pack result;
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        result.value[c] = static_cast<T>(sum[c]);
      }
      output[uint64_t(t) * packs + p] = result;
    }
    rows.check(args.places);
  }
}

template <typename T, int kCount, int kTopK>
__global__ void __launch_bounds__(kThreads, kBlocks<kTopK>) combine_backward_kernel(MoeCombineBackward<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int k = args.places.k;
  const unsigned packs = args.channels / kCount;
  const Pack* __restrict__ grad_output = reinterpret_cast<const Pack*>(args.grad_output);
  const Pack* __restrict__ y = reinterpret_cast<const Pack*>(args.y);
  Pack* __restrict__ grad_y = reinterpret_cast<Pack*>(args.grad_y);
  for (unsigned t = first_warp(); t < args.places.tokens; t += warp_stride()) {
    TokenRows<kTopK> rows(args.places, t);
    C weights[kTopK], dots[kTopK] = {};
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      weights[j] = j < k ? static_cast<C>(args.weights[t * k + j]) : C(0);
    }
    rows.share(args.places);
#pragma unroll 1
    for (unsigned p = lane(); p < packs; p += kWarp) {
      const Pack grad = grad_output[uint64_t(t) * packs + p];
      Pack packs_of[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          packs_of[j] = y[uint64_t(rows.at[j]) * packs + p];
        }
      }
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          Pack result;
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            dots[j] += static_cast<C>(grad.value[c]) * static_cast<C>(packs_of[j].value[c]);
            result.value[c] = static_cast<T>(weights[j] * static_cast<C>(grad.value[c]));
          }
          grad_y[uint64_t(rows.at[j]) * packs + p] = result;
        }
      }
    }
    C own = 0;  // lane j keeps the j-th
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      if (j < k) {
#pragma unroll
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
          dots[j] += __shfl_xor_sync(kAllLanes, dots[j], offset);
        }
        own = lane() == j ? dots[j] : own;
      }
    }
    if (lane() < k) {
      args.grad_weights[t * k + lane()] = static_cast<T>(own);
    }
    rows.check(args.places);
  }
}

// `order` and `place`, contiguous.
MoePlaces places_of(const at::Tensor& order, const at::Tensor& place) {
  return {
      place.size(0), static_cast<int>(place.size(1)), order.const_data_ptr<int64_t>(),
      place.const_data_ptr<int64_t>()};
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

at::Tensor moe_dispatch_cuda(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch(x, order, place);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor source = x.contiguous(), o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  at::Tensor output = at::empty({place.numel(), x.size(1)}, source.options());
  if (output.numel() == 0) {
    return output;
  }
  if (fits_16_bytes(x.size(1) * x.element_size(), source.const_data_ptr(), output.const_data_ptr())) {
    const auto launch = places.k == 1   ? &launch_dispatch<uint4, 1>
                        : places.k == 2 ? &launch_dispatch<uint4, 2>
                        : places.k <= 4 ? &launch_dispatch<uint4, 4>
                                        : &launch_dispatch<uint4, kMaxTopK>;
    launch(source, places, output);
  } else if (x.element_size() == 8) {
    launch_dispatch<uint64_t, kMaxTopK>(source, places, output);
  } else if (x.element_size() == 4) {
    launch_dispatch<uint32_t, kMaxTopK>(source, places, output);
  } else {
    launch_dispatch<uint16_t, kMaxTopK>(source, places, output);
  }
  return output;
}

template <typename T>
auto combine_kernel_for(bool packed, int k) {
  constexpr int kCount = 16 / sizeof(T);
  return !packed   ? &combine_kernel<T, 1, kMaxTopK>
         : k == 1  ? &combine_kernel<T, kCount, 1>
         : k == 2  ? &combine_kernel<T, kCount, 2>
         : k <= 4  ? &combine_kernel<T, kCount, 4>
                   : &combine_kernel<T, kCount, kMaxTopK>;
}

template <typename T>
auto combine_backward_kernel_for(bool packed, int k) {
  constexpr int kCount = 16 / sizeof(T);
  return !packed   ? &combine_backward_kernel<T, 1, kMaxTopK>
         : k == 1  ? &combine_backward_kernel<T, kCount, 1>
         : k == 2  ? &combine_backward_kernel<T, kCount, 2>
         : k <= 4  ? &combine_backward_kernel<T, kCount, 4>
                   : &combine_backward_kernel<T, kCount, kMaxTopK>;
}

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor combine(
    const at::Tensor& y, const at::Tensor* weights, const at::Tensor& order, const at::Tensor& place) {
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor rows = y.contiguous(), o = order.contiguous(), p = place.contiguous();
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor();
  const MoePlaces places = places_of(o, p);
  at::Tensor output = at::empty({places.tokens, y.size(1)}, rows.options());
  if (output.numel() == 0) {
    return output;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine", [&] {
    const MoeCombine<scalar_t> args{
        places, y.size(1), rows.const_data_ptr<scalar_t>(), weights ? w.const_data_ptr<scalar_t>() : nullptr,
        output.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.y, args.output);
    const auto kernel = combine_kernel_for<scalar_t>(packed, places.k);
    kernel<<<blocks_for(places.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

at::Tensor moe_dispatch_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch_backward(grad_output, order, place);
  return combine(grad_output, nullptr, order, place);
}

at::Tensor moe_combine_cuda(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  return combine(y, &weights, order, place);
}

std::tuple<at::Tensor, at::Tensor> moe_combine_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order,
    const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  check_moe_combine_backward(grad_output, y, weights);
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor grad = grad_output.contiguous(), rows = y.contiguous(), w = weights.contiguous();
  const at::Tensor o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  at::Tensor grad_y = at::empty_like(rows);
  at::Tensor grad_weights = at::empty_like(w);
  if (w.numel() == 0) {
    return {grad_y, grad_weights};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine_backward", [&] {
    const MoeCombineBackward<scalar_t> args{
        places, rows.size(1), grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(),
        w.const_data_ptr<scalar_t>(), grad_y.mutable_data_ptr<scalar_t>(),
        grad_weights.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.grad_output, args.y, args.grad_y);
    const auto kernel = combine_backward_kernel_for<scalar_t>(packed, places.k);
    kernel<<<blocks_for(places.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_y, grad_weights};
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_dispatch", &detrx::cuda::moe_dispatch_cuda);
  m.impl("moe_dispatch_backward", &detrx::cuda::moe_dispatch_backward_cuda);
  m.impl("moe_combine", &detrx::cuda::moe_combine_cuda);
  m.impl("moe_combine_backward", &detrx::cuda::moe_combine_backward_cuda);
}
