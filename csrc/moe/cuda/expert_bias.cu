// What torch's grouped matrix products leave to do in detrx::expert_linear: bias and ReLU behind the forward products,
// and in the backward pass the gradient of the ReLU and of the bias, in one pass over the rows each.
//
// Rows (N, O) of bfloat16 are in expert order; `ends` (E) are the rows behind the last one of each expert. Sums of floats
// have a fixed order, so that every result is the same in every run.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "../../cuda/warps.cuh"

namespace detrx::cuda {
namespace {

constexpr int kCount = 8;                 // channels that are read and written together
constexpr int kColumns = kWarp * kCount;  // channels that a warp covers
constexpr int kTile = 128;                // rows whose gradients a block sums up
using Pack8 = Pack<c10::BFloat16, kCount>;

struct Experts {
  int64_t rows;
  int count;
  const int* ends;
};

// All lanes of the warp ask for the same row.
__device__ __forceinline__ int expert_of(const Experts& experts, int64_t row) {
  int expert = 0;
#pragma unroll 1
  for (int first = 0; first < experts.count; first += kWarp) {
    const int e = first + lane();
    expert += __popc(__ballot_sync(kAllLanes, e < experts.count && experts.ends[e] <= row));
  }
  CUDA_KERNEL_ASSERT(expert < experts.count && "ends are not those of the rows");
  return expert;
}

// One warp per row.
template <bool kRelu>
__global__ void __launch_bounds__(kThreads) add_bias_kernel(
    Experts experts, int64_t packs, const Pack8* bias, Pack8* y) {
  constexpr int kPacks = 4;  // of a lane at a time
  if (blockIdx.x == 0) {
#pragma unroll 1
    for (int e = threadIdx.x; e < experts.count; e += kThreads) {
      CUDA_KERNEL_ASSERT(experts.ends[e] >= (e > 0 ? experts.ends[e - 1] : 0) && "ends decrease");
      CUDA_KERNEL_ASSERT((e < experts.count - 1 || experts.ends[e] == experts.rows) && "ends are not those of the rows");
    }
  }
  for (int64_t row = first_warp(); row < experts.rows; row += warp_stride()) {
    const int64_t expert = expert_of(experts, row);
#pragma unroll 1
    for (int64_t first = lane(); first < packs; first += kPacks * kWarp) {
      Pack8 values[kPacks];
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        if (first + i * kWarp < packs) {
          values[i] = y[row * packs + first + i * kWarp];
        }
      }
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        if (first + i * kWarp < packs) {
          const Pack8 addend = bias[expert * packs + first + i * kWarp];
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            const float sum = static_cast<float>(values[i].value[c]) + static_cast<float>(addend.value[c]);
            values[i].value[c] = static_cast<c10::BFloat16>(kRelu && sum < 0 ? 0.0f : sum);  // NaN stays
          }
          y[row * packs + first + i * kWarp] = values[i];
        }
      }
    }
  }
}

// blockIdx.x: a tile of kTile rows, blockIdx.y: kColumns channels. Where they are given, gradients of rows that the ReLU
// cut off are set to zero. sums[tile + e] takes the sum of the tile's rows of expert e: as rows are sorted by expert, no
// other pair of a tile and an expert has the same place.
template <bool kRelu>
__global__ void __launch_bounds__(kThreads) bias_backward_kernel(
    Experts experts, int64_t channels, const Pack8* __restrict__ grad, const Pack8* __restrict__ rectified,
    Pack8* __restrict__ output, float* sums) {
  __shared__ float of_warps[kWarps][kColumns];
  const int warp = threadIdx.x / kWarp;
  const int64_t packs = channels / kCount, pack = int64_t(blockIdx.y) * kWarp + lane();
  const int64_t column = int64_t(blockIdx.y) * kColumns + threadIdx.x;
  for (int64_t tile = blockIdx.x; tile * kTile < experts.rows; tile += gridDim.x) {
    const int64_t last = std::min((tile + 1) * kTile, experts.rows);
    int64_t begin = tile * kTile;
    for (int64_t expert = expert_of(experts, begin); begin < last; ++expert) {
      const int64_t end = std::min<int64_t>(experts.ends[expert], last);
      float sum[kCount] = {};
      if (pack < packs) {
#pragma unroll 4
        for (int64_t row = begin + warp; row < end; row += kWarps) {
          Pack8 value = grad[row * packs + pack];
          if (kRelu) {
            const Pack8 positive = rectified[row * packs + pack];
#pragma unroll
            for (int c = 0; c < kCount; ++c) {
              value.value[c] = static_cast<float>(positive.value[c]) <= 0 ? c10::BFloat16(0) : value.value[c];
            }
            output[row * packs + pack] = value;
          }
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            sum[c] += static_cast<float>(value.value[c]);
          }
        }
      }
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        of_warps[warp][lane() * kCount + c] = sum[c];
      }
      __syncthreads();
      if (column < channels) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          total += of_warps[w][threadIdx.x];
        }
        sums[(tile + expert) * channels + column] = total;
      }
      __syncthreads();
      begin = end;
    }
  }
}

// blockIdx.x: expert, blockIdx.y: kColumns channels. An expert without rows gets zeros, also as the gradient of its
// weights (I, O), which the grouped product may leave as it finds them.
__global__ void __launch_bounds__(kThreads) sum_tiles_kernel(
    Experts experts, int64_t inputs, int64_t channels, const float* sums, c10::BFloat16* grad_bias,
    c10::BFloat16* grad_weight) {
  const int64_t column = int64_t(blockIdx.y) * kColumns + threadIdx.x;
  if (column >= channels) {
    return;
  }
  for (int64_t expert = blockIdx.x; expert < experts.count; expert += gridDim.x) {
    const int64_t begin = expert > 0 ? experts.ends[expert - 1] : 0, end = experts.ends[expert];
    float total = 0;
    if (begin < end) {
#pragma unroll 8
      for (int64_t tile = begin / kTile; tile <= (end - 1) / kTile; ++tile) {
        total += sums[(tile + expert) * channels + column];
      }
    } else {
      for (int64_t i = 0; i < inputs; ++i) {
        grad_weight[(expert * inputs + i) * channels + column] = c10::BFloat16(0);
      }
    }
    grad_bias[expert * channels + column] = static_cast<c10::BFloat16>(total);
  }
}

void check(const at::Tensor& tensor, int64_t dim, const char* name) {
  TORCH_CHECK(
      tensor.scalar_type() == at::kBFloat16 && tensor.dim() == dim && tensor.is_contiguous() &&
          fits_16_bytes(tensor.size(-1) * 2, tensor.const_data_ptr()),
      "expert_linear: ", name, " of shape ", tensor.sizes(), " is not contiguous bfloat16 in units of 16 bytes");
}

Experts experts_of(int64_t rows, const at::Tensor& ends) {
  TORCH_CHECK(ends.scalar_type() == at::kInt && ends.dim() == 1 && ends.is_contiguous());
  return {rows, static_cast<int>(ends.size(0)), ends.const_data_ptr<int>()};
}

Pack8* packs_of(const at::Tensor& tensor) {
  return static_cast<Pack8*>(tensor.mutable_data_ptr());
}

unsigned column_blocks(int64_t channels) {
  return static_cast<unsigned>((channels + kColumns - 1) / kColumns);
}

void add_expert_bias(at::Tensor& y, const at::Tensor& bias, const at::Tensor& ends, bool relu) {
  check(y, 2, "the product");
  check(bias, 2, "bias");
  const c10::cuda::CUDAGuard guard(y.device());
  const Experts experts = experts_of(y.size(0), ends);
  const auto kernel = relu ? &add_bias_kernel<true> : &add_bias_kernel<false>;
  kernel<<<blocks_for(experts.rows, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      experts, y.size(1) / kCount, packs_of(bias), packs_of(y));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// The gradient before the ReLU, if `rectified`, what it gave, is defined; and the sums of its tiles (tiles + E, O).
std::tuple<at::Tensor, at::Tensor> expert_bias_backward(
    const at::Tensor& grad, const std::optional<at::Tensor>& rectified, const at::Tensor& ends) {
  check(grad, 2, "grad_output");
  const c10::cuda::CUDAGuard guard(grad.device());
  const Experts experts = experts_of(grad.size(0), ends);
  const int64_t tiles = (experts.rows + kTile - 1) / kTile, channels = grad.size(1);
  at::Tensor sums = at::empty({tiles + experts.count, channels}, grad.options().dtype(at::kFloat));
  at::Tensor output = rectified ? at::empty_like(grad) : at::empty({0}, grad.options());
  if (rectified) {
    check(*rectified, 2, "the output");
  }
  const auto kernel = rectified ? &bias_backward_kernel<true> : &bias_backward_kernel<false>;
  const dim3 grid(static_cast<unsigned>(tiles), column_blocks(channels));
  kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      experts, channels, packs_of(grad), rectified ? packs_of(*rectified) : nullptr,
      rectified ? packs_of(output) : nullptr, sums.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {output, sums};
}

at::Tensor sum_expert_bias(at::Tensor& grad_weight, const at::Tensor& sums, const at::Tensor& ends) {
  check(grad_weight, 3, "grad_weight");
  const c10::cuda::CUDAGuard guard(grad_weight.device());
  const Experts experts = experts_of(0, ends);
  const int64_t channels = grad_weight.size(2);
  at::Tensor grad_bias = at::empty({experts.count, channels}, grad_weight.options());
  const dim3 grid(experts.count, column_blocks(channels));
  sum_tiles_kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      experts, grad_weight.size(1), channels, sums.const_data_ptr<float>(),
      grad_bias.mutable_data_ptr<c10::BFloat16>(), grad_weight.mutable_data_ptr<c10::BFloat16>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_bias;
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("_add_expert_bias_", &detrx::cuda::add_expert_bias);
  m.impl("_expert_bias_backward", &detrx::cuda::expert_bias_backward);
  m.impl("_sum_expert_bias_", &detrx::cuda::sum_expert_bias);
}
