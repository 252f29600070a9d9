// CUDA implementation of detrx::moe_route: two launches, nothing is read on the host, and every result is the same in
// every run, as only integers are summed with atomics.
//
// The tokens are shared among the blocks in contiguous chunks. The first kernel chooses the experts of its tokens and
// counts them. In the second, each block adds up the counts of the chunks before its own (few enough that all blocks
// doing so costs less than another launch) and places its assignments: a stable counting sort.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "../../cuda/warps.cuh"
#include "../../reduced_float.h"
#include "../moe.h"
#include "../routing.h"
#include "slots.cuh"

namespace detrx::cuda {
namespace {

constexpr int64_t kMaxChunks = 1024;     // blocks
constexpr int64_t kMaxCounts = 1 << 16;  // counts of all chunks, which every block of place_kernel reads

struct Chunks {
  int64_t tokens;
  int64_t size;  // tokens of a chunk
  int count;
  int num_experts, k;
};

// The ranks of experts [first, first + kSlots); 0 for those that do not exist. `logits` are those of a token.
template <typename T>
__device__ __forceinline__ void load_ranks(
    const T* logits, int first, int num_experts, bool packed, Rank<Compute<T>> (&ranks)[kSlots]) {
  using Pack = Pack<T, kSlots>;
  if (packed) {
    Pack pack = {};
    if (first < num_experts) {
      pack = *reinterpret_cast<const Pack*>(logits + first);
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      ranks[slot] = first < num_experts ? rank_of(static_cast<Compute<T>>(pack.value[slot])) : 0;
    }
  } else {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      ranks[slot] =
          first + slot < num_experts ? rank_of(static_cast<Compute<T>>(logits[first + slot])) : 0;
    }
  }
}

// The highest rank among those of kGroup lanes, which becomes 0. `expert` is that of ranks[0], and becomes the chosen one.
template <int kGroup, typename R>
__device__ __forceinline__ R take_best(R (&ranks)[kSlots], int& expert) {
  const int first = expert;
  R best = ranks[0];
#pragma unroll
  for (int slot = 1; slot < kSlots; ++slot) {
    expert = ranks[slot] > best ? first + slot : expert;
    best = std::max(ranks[slot], best);
  }
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    const R other = __shfl_xor_sync(kAllLanes, best, offset);
    const int other_expert = __shfl_xor_sync(kAllLanes, expert, offset);
    const bool is_better = other > best || (other == best && other_expert < expert);
    best = is_better ? other : best;
    expert = is_better ? other_expert : expert;
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    ranks[slot] = first + slot == expert ? 0 : ranks[slot];
  }
  return best;
}

// kGroup lanes share a token, kSlots neighbouring experts each. k is at most kTopK. histogram (chunks, E)
template <typename T, int kGroup, int kTopK>
__global__ void __launch_bounds__(kThreads) route_kernel(
    const T* logits, Chunks chunks, bool packed, T* weights, int64_t* experts, int* histogram) {
  using C = Compute<T>;
  __shared__ int counts[kMaxExperts];
  const int num_experts = chunks.num_experts, k = chunks.k;
  const int member = threadIdx.x % kGroup, first = member * kSlots;
  for (int chunk = blockIdx.x; chunk < chunks.count; chunk += gridDim.x) {
    for (int e = threadIdx.x; e < num_experts; e += kThreads) {
      counts[e] = 0;
    }
    __syncthreads();
    const int64_t begin = chunk * chunks.size, end = std::min(begin + chunks.size, chunks.tokens);
    for (int64_t base = begin; base < end; base += kThreads / kGroup) {
      const int64_t t = base + threadIdx.x / kGroup;
      Rank<C> ranks[kSlots] = {};
      if (t < end) {
        load_ranks(logits + t * num_experts, first, num_experts, packed, ranks);
      }
      C values[kTopK], chosen[kTopK];
      int chosen_experts[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k) {
          chosen_experts[j] = first;
          values[j] = logit_of<C>(take_best<kGroup>(ranks, chosen_experts[j]));
        }
      }
      chosen_weights(values, k, chosen);
#pragma unroll
      for (int j = 0; j < kTopK; ++j) {
        if (j < k && j % kGroup == member && t < end) {
          weights[t * k + j] = static_cast<T>(chosen[j]);
          experts[t * k + j] = chosen_experts[j];
          atomicAdd(counts + chosen_experts[j], 1);
        }
      }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < num_experts; e += kThreads) {
      histogram[int64_t(chunk) * num_experts + e] = counts[e];
    }
  }
}

// One block per chunk, whose assignments the warps share in contiguous parts.
__global__ void __launch_bounds__(kThreads) place_kernel(
    const int64_t* experts, Chunks chunks, const int* histogram, int64_t* counts, int* ends, int64_t* order,
    int64_t* place) {
  __shared__ int totals[kMaxExperts];        // of all chunks
  __shared__ int before[kMaxExperts];        // of the chunks before this one
  __shared__ int next[kWarps][kMaxExperts];  // first a warp's count, then its next free row
  const int num_experts = chunks.num_experts, warp = threadIdx.x / kWarp;
  const unsigned lanes_before = (1u << lane()) - 1;
  for (int chunk = blockIdx.x; chunk < chunks.count; chunk += gridDim.x) {
    __syncthreads();
    for (int e = threadIdx.x; e < num_experts; e += kThreads) {
      totals[e] = before[e] = 0;
      for (int w = 0; w < kWarps; ++w) {
        next[w][e] = 0;
      }
    }
    __syncthreads();

    const int rows = kThreads / num_experts;  // of the histogram, that are read at a time
    if (threadIdx.x < rows * num_experts) {
      const int e = threadIdx.x % num_experts;
      int total = 0, earlier = 0;
#pragma unroll 4
      for (int other = threadIdx.x / num_experts; other < chunks.count; other += rows) {
        const int count = histogram[int64_t(other) * num_experts + e];
        total += count;
        earlier += other < chunk ? count : 0;
      }
      atomicAdd(totals + e, total);
      atomicAdd(before + e, earlier);
    }
    const int64_t begin = chunk * chunks.size * chunks.k;
    const int64_t end = std::min((chunk + 1) * chunks.size, chunks.tokens) * chunks.k;
    const int64_t part = (end - begin + kThreads - 1) / kThreads * kWarp;
    const int64_t part_begin = begin + warp * part, part_end = std::min(part_begin + part, end);
    for (int64_t i = part_begin + lane(); i < part_end; i += kWarp) {
      atomicAdd(next[warp] + experts[i], 1);
    }
    __syncthreads();

    for (int e = threadIdx.x; e < num_experts; e += kThreads) {
      int row = 0;
      for (int lower = 0; lower < e; ++lower) {
        row += totals[lower];
      }
      if (chunk == 0) {
        counts[e] = totals[e];
        ends[e] = row + totals[e];
      }
      row += before[e];
      for (int w = 0; w < kWarps; ++w) {
        const int count = next[w][e];
        next[w][e] = row;
        row += count;
      }
    }
    __syncthreads();

    for (int64_t first = part_begin; first < part_end; first += kWarp) {
      const int64_t i = first + lane();
      const int expert = i < part_end ? static_cast<int>(experts[i]) : kMaxExperts;
      const unsigned peers = __match_any_sync(kAllLanes, expert);
      const int rank = __popc(peers & lanes_before);
      if (i < part_end) {
        const int row = next[warp][expert] + rank;
        order[row] = i;
        place[i] = row;
      }
      __syncwarp();
      if (i < part_end && rank == 0) {
        next[warp][expert] += __popc(peers);
      }
      __syncwarp();
    }
  }
}

template <typename T, int kGroup>
auto route_kernel_for(int64_t k) {
  return k <= 2 ? &route_kernel<T, kGroup, 2> : &route_kernel<T, kGroup, kMaxTopK>;
}

// Lanes per token: 1, 4, 8 or 32.
int lanes_for(int64_t num_experts) {
  const int64_t slots = (num_experts + kSlots - 1) / kSlots;
  return slots <= 1 ? 1 : slots <= 4 ? 4 : slots <= 8 ? 8 : 32;
}

Chunks chunks_of(int64_t tokens, int64_t num_experts, int64_t k) {
  const int64_t at_a_time = kThreads / lanes_for(num_experts);
  const int64_t most = std::min(kMaxChunks, kMaxCounts / num_experts);
  const int64_t size = ((tokens + most - 1) / most + at_a_time - 1) / at_a_time * at_a_time;
  return {
      tokens, size, static_cast<int>((tokens + size - 1) / size), static_cast<int>(num_experts), static_cast<int>(k)};
}

Routing route(const at::Tensor& logits, int64_t k) {
  check_moe_route(logits, k);
  const c10::cuda::CUDAGuard guard(logits.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t tokens = logits.size(0), num_experts = logits.size(1);
  const at::Tensor l = logits.contiguous();
  const auto integers = l.options().dtype(at::kLong);
  at::Tensor weights = at::empty({tokens, k}, l.options());
  at::Tensor experts = at::empty({tokens, k}, integers);
  at::Tensor order = at::empty({tokens * k}, integers);
  at::Tensor place = at::empty({tokens, k}, integers);
  if (tokens == 0) {
    return {
        weights, experts, at::zeros({num_experts}, integers), at::zeros({num_experts}, l.options().dtype(at::kInt)),
        order, place};
  }
  at::Tensor counts = at::empty({num_experts}, integers);
  at::Tensor ends = at::empty({num_experts}, l.options().dtype(at::kInt));
  const Chunks chunks = chunks_of(tokens, num_experts, k);
  at::Tensor histogram = at::empty({chunks.count, num_experts}, ends.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, l.scalar_type(), "moe_route", [&] {
    const int lanes = lanes_for(num_experts);
    const auto kernel = lanes == 1   ? route_kernel_for<scalar_t, 1>(k)
                        : lanes == 4 ? route_kernel_for<scalar_t, 4>(k)
                        : lanes == 8 ? route_kernel_for<scalar_t, 8>(k)
                                     : route_kernel_for<scalar_t, 32>(k);
    kernel<<<chunks.count, kThreads, 0, stream>>>(
        l.const_data_ptr<scalar_t>(), chunks, fits_packs(l), weights.mutable_data_ptr<scalar_t>(),
        experts.mutable_data_ptr<int64_t>(), histogram.mutable_data_ptr<int>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  place_kernel<<<chunks.count, kThreads, 0, stream>>>(
      experts.const_data_ptr<int64_t>(), chunks, histogram.const_data_ptr<int>(),
      counts.mutable_data_ptr<int64_t>(), ends.mutable_data_ptr<int>(), order.mutable_data_ptr<int64_t>(),
      place.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weights, experts, counts, ends, order, place};
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("moe_route", &detrx::cuda::route);
}
