// CUDA implementation of detrx::moe_route, moe_dispatch and moe_combine. Nothing is read on the host, and every result is
// the same in every run: integers are counted with atomics, sums of floats are not. float16 and bfloat16 are computed in
// float32.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "moe.h"
#include "routing.h"

namespace detrx {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;  // per block
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kAllLanes = 0xffffffffu;

// The type of the arithmetic for tensors of type T.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Blocks for `count` items, `per_block` of them in each; the kernels stride over what lies beyond.
int blocks(int64_t count, int64_t per_block) {
  return static_cast<int>(std::min<int64_t>((count + per_block - 1) / per_block, 1 << 20));
}

__device__ __forceinline__ int lane() {
  return threadIdx.x % kWarp;
}
__device__ __forceinline__ int64_t first_warp() {
  return int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}
__device__ __forceinline__ int64_t warp_stride() {
  return int64_t(gridDim.x) * kWarps;
}
__device__ __forceinline__ int64_t first_thread() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t thread_stride() {
  return int64_t(gridDim.x) * kThreads;
}

// An expert that is none: ranks behind all others.
constexpr int kNone = kMaxExperts;

template <typename C>
__device__ __forceinline__ bool is_better(const Candidate<C>& a, const Candidate<C>& b) {
  return a.expert != kNone && (b.expert == kNone || ranks_before(a, b));
}

// One warp per token; lane i holds the logits of experts i, i + 32, ...
template <typename T, int kSlots>
__global__ void route_kernel(
    const T* logits, int64_t tokens, int num_experts, int k, T* weights, int64_t* experts) {
  using C = Compute<T>;
  for (int64_t t = first_warp(); t < tokens; t += warp_stride()) {
    Candidate<C> own[kSlots];
    for (int slot = 0; slot < kSlots; ++slot) {
      const int expert = lane() + slot * kWarp;
      const bool exists = expert < num_experts;
      own[slot] = {exists ? static_cast<C>(logits[t * num_experts + expert]) : C(0), exists ? expert : kNone};
    }
    C chosen[kMaxTopK], weight[kMaxTopK];
    int64_t chosen_expert = 0;  // lane j keeps the j-th
    for (int j = 0; j < k; ++j) {
      Candidate<C> best = own[0];
      for (int slot = 1; slot < kSlots; ++slot) {
        best = is_better(own[slot], best) ? own[slot] : best;
      }
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const Candidate<C> other{
            __shfl_xor_sync(kAllLanes, best.logit, offset), __shfl_xor_sync(kAllLanes, best.expert, offset)};
        best = is_better(other, best) ? other : best;
      }
      for (int slot = 0; slot < kSlots; ++slot) {
        own[slot].expert = own[slot].expert == best.expert ? kNone : own[slot].expert;
      }
      chosen[j] = best.logit;
      chosen_expert = lane() == j ? best.expert : chosen_expert;
    }
    chosen_weights(chosen, k, weight);
    for (int j = 0; j < k; ++j) {
      if (lane() == j) {
        weights[t * k + j] = static_cast<T>(weight[j]);
        experts[t * k + j] = chosen_expert;
      }
    }
  }
}

template <typename T>
__global__ void route_backward_kernel(
    const T* grad_weights, const T* logits, const int64_t* experts, int64_t tokens, int num_experts, int k,
    T* grad_logits) {
  using C = Compute<T>;
  for (int64_t t = first_thread(); t < tokens; t += thread_stride()) {
    C values[kMaxTopK], weights[kMaxTopK], grad[kMaxTopK], gradient[kMaxTopK];
    for (int j = 0; j < k; ++j) {
      const int64_t expert = experts[t * k + j];
      CUDA_KERNEL_ASSERT(expert >= 0 && expert < num_experts && "experts has an expert that does not exist");
      values[j] = static_cast<C>(logits[t * num_experts + expert]);
      grad[j] = static_cast<C>(grad_weights[t * k + j]);
    }
    chosen_weights(values, k, weights);
    chosen_gradient(weights, grad, k, gradient);
    for (int j = 0; j < k; ++j) {
      grad_logits[t * num_experts + experts[t * k + j]] = static_cast<T>(gradient[j]);
    }
  }
}

// The stable counting sort of the assignments by expert, in chunks of one warp each: count, sum up, place.
struct Chunks {
  int64_t assignments, size, count;
};

// histogram (chunks, E)
__global__ void count_kernel(const int64_t* experts, Chunks chunks, int num_experts, int64_t* histogram) {
  __shared__ int shared[kWarps][kMaxExperts];
  int* counts = shared[threadIdx.x / kWarp];
  for (int64_t chunk = first_warp(); chunk < chunks.count; chunk += warp_stride()) {
    for (int e = lane(); e < num_experts; e += kWarp) {
      counts[e] = 0;
    }
    __syncwarp();
    const int64_t end = std::min((chunk + 1) * chunks.size, chunks.assignments);
    for (int64_t i = chunk * chunks.size + lane(); i < end; i += kWarp) {
      atomicAdd(counts + experts[i], 1);
    }
    __syncwarp();
    for (int e = lane(); e < num_experts; e += kWarp) {
      histogram[chunk * num_experts + e] = counts[e];
    }
    __syncwarp();
  }
}

// One block of kMaxExperts threads. histogram[chunk][e] becomes the count of e in the chunks before it; `counts` takes
// the totals, `starts` the first place of each expert.
__global__ void sum_kernel(Chunks chunks, int num_experts, int64_t* histogram, int64_t* counts, int64_t* starts) {
  __shared__ int64_t sums[kMaxExperts];
  const int e = threadIdx.x;
  int64_t total = 0;
  if (e < num_experts) {
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t count = histogram[chunk * num_experts + e];
      histogram[chunk * num_experts + e] = total;
      total += count;
    }
    counts[e] = total;
  }
  sums[e] = total;
  for (int offset = 1; offset < kMaxExperts; offset *= 2) {
    __syncthreads();
    const int64_t before = e >= offset ? sums[e - offset] : 0;
    __syncthreads();
    sums[e] += before;
  }
  if (e < num_experts) {
    starts[e] = sums[e] - total;
  }
}

__global__ void place_kernel(
    const int64_t* experts, Chunks chunks, int num_experts, const int64_t* histogram, const int64_t* starts,
    int64_t* order) {
  __shared__ int64_t shared[kWarps][kMaxExperts];
  int64_t* next = shared[threadIdx.x / kWarp];
  const unsigned lanes_before = (1u << lane()) - 1;
  for (int64_t chunk = first_warp(); chunk < chunks.count; chunk += warp_stride()) {
    for (int e = lane(); e < num_experts; e += kWarp) {
      next[e] = starts[e] + histogram[chunk * num_experts + e];
    }
    __syncwarp();
    const int64_t end = std::min((chunk + 1) * chunks.size, chunks.assignments);
    for (int64_t first = chunk * chunks.size; first < end; first += kWarp) {
      const int64_t i = first + lane();
      const int expert = i < end ? static_cast<int>(experts[i]) : kNone;
      const unsigned peers = __match_any_sync(kAllLanes, expert);
      const int rank = __popc(peers & lanes_before);
      if (expert != kNone) {
        order[next[expert] + rank] = i;
      }
      __syncwarp();
      if (expert != kNone && rank == 0) {
        next[expert] += __popc(peers);
      }
      __syncwarp();
    }
  }
}

// kCount channels that are read and written together: 16 bytes, or one element where rows are not aligned to that.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T value[kCount];
};

// One warp per row. Rows are `units` units long, whatever is in them.
template <typename Unit>
__global__ void dispatch_kernel(
    const Unit* x, const int64_t* order, int64_t assignments, int64_t k, int64_t units, Unit* output) {
  for (int64_t i = first_warp(); i < assignments; i += warp_stride()) {
    const int64_t assignment = order[i];
    CUDA_KERNEL_ASSERT(assignment >= 0 && assignment < assignments && "order is not a permutation");
    const Unit* source = x + assignment / k * units;
    Unit* target = output + i * units;
    for (int64_t u = lane(); u < units; u += kWarp) {
      target[u] = source[u];
    }
  }
}

// place[order[i]] = i
__global__ void invert_kernel(const int64_t* order, int64_t assignments, int64_t* place) {
  for (int64_t i = first_thread(); i < assignments; i += thread_stride()) {
    CUDA_KERNEL_ASSERT(order[i] >= 0 && order[i] < assignments && "order is not a permutation");
    place[order[i]] = i;
  }
}

// One warp per token.
template <typename T, int kCount>
__global__ void combine_kernel(MoeCombine<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int64_t packs = args.channels / kCount;
  for (int64_t t = first_warp(); t < args.tokens; t += warp_stride()) {
    for (int64_t p = lane(); p < packs; p += kWarp) {
      C sum[kCount] = {};
      for (int64_t j = 0; j < args.k; ++j) {
        const int64_t row = args.place[t * args.k + j];
        CUDA_KERNEL_ASSERT(row >= 0 && "order is not a permutation");
        const C weight = args.weights ? static_cast<C>(args.weights[t * args.k + j]) : C(1);
        const Pack pack = reinterpret_cast<const Pack*>(args.y)[row * packs + p];
        for (int c = 0; c < kCount; ++c) {
          sum[c] += weight * static_cast<C>(pack.value[c]);
        }
      }
      Pack output;
      for (int c = 0; c < kCount; ++c) {
        output.value[c] = static_cast<T>(sum[c]);
      }
      reinterpret_cast<Pack*>(args.output)[t * packs + p] = output;
    }
  }
}

// One warp per row of y.
template <typename T, int kCount>
__global__ void combine_backward_kernel(MoeCombineBackward<T> args) {
  using C = Compute<T>;
  using Pack = Pack<T, kCount>;
  const int64_t packs = args.channels / kCount, assignments = args.tokens * args.k;
  for (int64_t i = first_warp(); i < assignments; i += warp_stride()) {
    const int64_t assignment = args.order[i];
    CUDA_KERNEL_ASSERT(assignment >= 0 && assignment < assignments && "order is not a permutation");
    const C weight = static_cast<C>(args.weights[assignment]);
    const int64_t token = assignment / args.k;
    C dot = 0;
    for (int64_t p = lane(); p < packs; p += kWarp) {
      const Pack grad = reinterpret_cast<const Pack*>(args.grad_output)[token * packs + p];
      const Pack y = reinterpret_cast<const Pack*>(args.y)[i * packs + p];
      Pack grad_y;
      for (int c = 0; c < kCount; ++c) {
        dot += static_cast<C>(grad.value[c]) * static_cast<C>(y.value[c]);
        grad_y.value[c] = static_cast<T>(weight * static_cast<C>(grad.value[c]));
      }
      reinterpret_cast<Pack*>(args.grad_y)[i * packs + p] = grad_y;
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      dot += __shfl_xor_sync(kAllLanes, dot, offset);
    }
    if (lane() == 0) {
      args.grad_weights[assignment] = static_cast<T>(dot);
    }
  }
}

template <typename... Pointers>
bool fits_16_bytes(int64_t row_bytes, Pointers... pointers) {
  return row_bytes % 16 == 0 && (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

at::Tensor invert(const at::Tensor& order) {
  at::Tensor place = at::full({order.numel()}, -1, order.options());
  invert_kernel<<<blocks(order.numel(), kThreads), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      order.const_data_ptr<int64_t>(), order.numel(), place.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return place;
}

template <typename T>
void launch_route(const T* logits, int64_t tokens, int num_experts, int k, T* weights, int64_t* experts) {
  const auto kernel = num_experts <= kWarp ? &route_kernel<T, 1>
                      : num_experts <= 2 * kWarp ? &route_kernel<T, 2>
                                                 : &route_kernel<T, kMaxExperts / kWarp>;
  kernel<<<blocks(tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      logits, tokens, num_experts, k, weights, experts);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void sort_by_expert(const at::Tensor& experts, int num_experts, const at::Tensor& counts, const at::Tensor& order) {
  constexpr int64_t smallest = 256, most = 1024;  // a chunk, and how many of them one block sums up
  Chunks chunks{experts.numel(), 0, 0};
  chunks.size = std::max((chunks.assignments + most - 1) / most, smallest);
  chunks.count = (chunks.assignments + chunks.size - 1) / chunks.size;
  const at::Tensor histogram = at::empty({chunks.count, num_experts}, experts.options());
  const at::Tensor starts = at::empty({num_experts}, experts.options());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t* source = experts.const_data_ptr<int64_t>();
  count_kernel<<<blocks(chunks.count, kWarps), kThreads, 0, stream>>>(
      source, chunks, num_experts, histogram.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  sum_kernel<<<1, kMaxExperts, 0, stream>>>(
      chunks, num_experts, histogram.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>(),
      starts.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  place_kernel<<<blocks(chunks.count, kWarps), kThreads, 0, stream>>>(
      source, chunks, num_experts, histogram.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
      order.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> moe_route_cuda(const at::Tensor& logits, int64_t k) {
  check_moe_route(logits, k);
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t tokens = logits.size(0), num_experts = logits.size(1);
  const at::Tensor l = logits.contiguous();
  at::Tensor weights = at::empty({tokens, k}, l.options());
  at::Tensor experts = at::empty({tokens, k}, l.options().dtype(at::kLong));
  at::Tensor counts = at::zeros({num_experts}, experts.options());
  at::Tensor order = at::empty({tokens * k}, experts.options());
  if (tokens == 0) {
    return {weights, experts, counts, order};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, l.scalar_type(), "moe_route", [&] {
    launch_route<scalar_t>(
        l.const_data_ptr<scalar_t>(), tokens, static_cast<int>(num_experts), static_cast<int>(k),
        weights.mutable_data_ptr<scalar_t>(), experts.mutable_data_ptr<int64_t>());
  });
  sort_by_expert(experts, static_cast<int>(num_experts), counts, order);
  return {weights, experts, counts, order};
}

at::Tensor moe_route_backward_cuda(
    const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  check_moe_route_backward(grad_weights, logits, experts);
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t tokens = logits.size(0);
  const at::Tensor grad = grad_weights.contiguous();
  const at::Tensor l = logits.contiguous();
  const at::Tensor chosen = experts.contiguous();
  at::Tensor grad_logits = at::zeros_like(l);
  if (tokens == 0) {
    return grad_logits;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, l.scalar_type(), "moe_route_backward", [&] {
    route_backward_kernel<scalar_t>
        <<<blocks(tokens, kThreads), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            grad.const_data_ptr<scalar_t>(), l.const_data_ptr<scalar_t>(), chosen.const_data_ptr<int64_t>(), tokens,
            static_cast<int>(logits.size(1)), static_cast<int>(experts.size(1)),
            grad_logits.mutable_data_ptr<scalar_t>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_logits;
}

template <typename Unit>
void launch_dispatch(const at::Tensor& x, const at::Tensor& order, int64_t k, const at::Tensor& output) {
  const int64_t units = x.size(1) * x.element_size() / static_cast<int64_t>(sizeof(Unit));
  dispatch_kernel<Unit><<<blocks(order.numel(), kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      static_cast<const Unit*>(x.const_data_ptr()), order.const_data_ptr<int64_t>(), order.numel(), k, units,
      static_cast<Unit*>(output.mutable_data_ptr()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor moe_dispatch_cuda(const at::Tensor& x, const at::Tensor& order, int64_t k) {
  check_moe_dispatch(x, order, k);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor source = x.contiguous();
  const at::Tensor assignments = order.contiguous();
  at::Tensor output = at::empty({x.size(0) * k, x.size(1)}, source.options());
  if (output.numel() == 0) {
    return output;
  }
  if (fits_16_bytes(x.size(1) * x.element_size(), source.const_data_ptr(), output.const_data_ptr())) {
    launch_dispatch<uint4>(source, assignments, k, output);
  } else if (x.element_size() == 8) {
    launch_dispatch<uint64_t>(source, assignments, k, output);
  } else if (x.element_size() == 4) {
    launch_dispatch<uint32_t>(source, assignments, k, output);
  } else {
    launch_dispatch<uint16_t>(source, assignments, k, output);
  }
  return output;
}

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor combine(const at::Tensor& y, const at::Tensor* weights, const at::Tensor& order, int64_t k) {
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor rows = y.contiguous();
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor();
  at::Tensor output = at::empty({y.size(0) / k, y.size(1)}, rows.options());
  if (output.numel() == 0) {
    return output;
  }
  const at::Tensor place = invert(order.contiguous());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine", [&] {
    const MoeCombine<scalar_t> args{
        output.size(0), k, output.size(1), rows.const_data_ptr<scalar_t>(),
        weights ? w.const_data_ptr<scalar_t>() : nullptr, place.const_data_ptr<int64_t>(),
        output.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.y, args.output);
    const auto kernel = packed ? &combine_kernel<scalar_t, 16 / sizeof(scalar_t)> : &combine_kernel<scalar_t, 1>;
    kernel<<<blocks(args.tokens, kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

at::Tensor moe_dispatch_backward_cuda(const at::Tensor& grad_output, const at::Tensor& order, int64_t k) {
  check_moe_dispatch_backward(grad_output, order, k);
  return combine(grad_output, nullptr, order, k);
}

at::Tensor moe_combine_cuda(const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order) {
  check_moe_combine(y, weights, order);
  return combine(y, &weights, order, weights.size(1));
}

std::tuple<at::Tensor, at::Tensor> moe_combine_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order) {
  check_moe_combine(y, weights, order);
  check_moe_combine_backward(grad_output, y, weights);
  const c10::cuda::CUDAGuard guard(y.device());
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor rows = y.contiguous();
  const at::Tensor w = weights.contiguous();
  const at::Tensor assignments = order.contiguous();
  at::Tensor grad_y = at::empty_like(rows);
  at::Tensor grad_weights = at::empty_like(w);
  if (w.numel() == 0) {
    return {grad_y, grad_weights};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rows.scalar_type(), "moe_combine_backward", [&] {
    const MoeCombineBackward<scalar_t> args{
        w.size(0), w.size(1), rows.size(1), grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(),
        w.const_data_ptr<scalar_t>(), assignments.const_data_ptr<int64_t>(), grad_y.mutable_data_ptr<scalar_t>(),
        grad_weights.mutable_data_ptr<scalar_t>()};
    const bool packed = fits_16_bytes(args.channels * sizeof(scalar_t), args.grad_output, args.y, args.grad_y);
    const auto kernel = packed ? &combine_backward_kernel<scalar_t, 16 / sizeof(scalar_t)>
                               : &combine_backward_kernel<scalar_t, 1>;
    kernel<<<blocks(w.numel(), kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(args);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_y, grad_weights};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_route", &detrx::moe_route_cuda);
  m.impl("moe_route_backward", &detrx::moe_route_backward_cuda);
  m.impl("moe_dispatch", &detrx::moe_dispatch_cuda);
  m.impl("moe_dispatch_backward", &detrx::moe_dispatch_backward_cuda);
  m.impl("moe_combine", &detrx::moe_combine_cuda);
  m.impl("moe_combine_backward", &detrx::moe_combine_backward_cuda);
}
