// CUDA implementation of detrx::query_route. Only without a capacity does it wait for the device: to read the counts.
//
// Every block lists the kept queries of one stretch of an image. It counts the ones before them itself, which costs less
// than another launch, or blocks that wait for each other, for images of up to some hundred thousand queries.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>

#include "../../cuda/warps.cuh"
#include "../query_routing.h"

namespace detrx::cuda {
namespace {

constexpr int kRouteThreads = 512;  // per block
constexpr int kRouteWarps = kRouteThreads / kWarp;
constexpr int kItems = 16;  // queries of a lane, which are loaded together
constexpr int kStretch = kRouteThreads * kItems;

struct Mask {
  const bool* keep;
  unsigned images, queries, stretches;
};

// Votes of the warp for its kItems * kWarp neighbouring queries, in their order; lane i votes for query i of each.
__device__ __forceinline__ void vote(const Mask& mask, unsigned b, unsigned stretch, unsigned (&votes)[kItems]) {
  const unsigned first = stretch * kStretch + threadIdx.x / kWarp * (kItems * kWarp) + lane();
  const bool* keep = mask.keep + uint64_t(b) * mask.queries + first;
  const int rest = static_cast<int>(mask.queries - first);  // negative beyond the end
  bool kept[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    kept[i] = i * kWarp < rest && keep[i * kWarp];
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    votes[i] = __ballot_sync(kAllLanes, kept[i]);
  }
}

__device__ __forceinline__ int count(const unsigned (&votes)[kItems]) {
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    sum += __popc(votes[i]);
  }
  return sum;
}

// counts (images, stretches)
__global__ void __launch_bounds__(kRouteThreads) count_kernel(Mask mask, int* counts) {
  __shared__ int of_warps[kRouteWarps];
  for (unsigned job = blockIdx.x; job < mask.images * mask.stretches; job += gridDim.x) {
    unsigned votes[kItems];
    vote(mask, job / mask.stretches, job % mask.stretches, votes);
    __syncthreads();
    if (lane() == 0) {
      of_warps[threadIdx.x / kWarp] = count(votes);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int sum = 0;
      for (int w = 0; w < kRouteWarps; ++w) {
        sum += of_warps[w];
      }
      counts[job] = sum;
    }
  }
}

// index, valid (images, capacity)
__global__ void __launch_bounds__(kRouteThreads) route_kernel(Mask mask, int capacity, int64_t* index, bool* valid) {
  __shared__ int before[kRouteWarps];  // kept queries of the earlier stretches, as each warp has counted them
  __shared__ int own[kRouteWarps];     // and of this one
  const int warp = threadIdx.x / kWarp;
  const unsigned lanes_before = (1u << lane()) - 1;
  for (unsigned job = blockIdx.x; job < mask.images * mask.stretches; job += gridDim.x) {
    const unsigned b = job / mask.stretches, stretch = job % mask.stretches;
    unsigned votes[kItems];
    int earlier = 0;
    for (unsigned other = 0; other < stretch; ++other) {
      vote(mask, b, other, votes);
      earlier += count(votes);
    }
    vote(mask, b, stretch, votes);
    __syncthreads();
    if (lane() == 0) {
      before[warp] = earlier;
      own[warp] = count(votes);
    }
    __syncthreads();
    int slot = 0, total = 0;
    for (int w = 0; w < kRouteWarps; ++w) {
      slot += before[w] + (w < warp ? own[w] : 0);
      total += before[w] + own[w];
    }
    int64_t* image_index = index + uint64_t(b) * capacity;
    bool* image_valid = valid + uint64_t(b) * capacity;
    const unsigned first = stretch * kStretch + warp * (kItems * kWarp) + lane();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int place = slot + __popc(votes[i] & lanes_before);
      if ((votes[i] >> lane() & 1) && place < capacity) {
        image_index[place] = first + i * kWarp;
        image_valid[place] = true;
      }
      slot += __popc(votes[i]);
    }
    if (stretch == mask.stretches - 1) {
      for (int place = total + threadIdx.x; place < capacity; place += kRouteThreads) {
        image_index[place] = 0;
        image_valid[place] = false;
      }
    }
    CUDA_KERNEL_ASSERT(total <= capacity && "query_route: an image keeps more queries than capacity");
  }
}

// Waits for the device.
int64_t largest_count(const Mask& mask, const at::Tensor& keep) {
  at::Tensor counts = at::empty({mask.images, mask.stretches}, keep.options().dtype(at::kInt));
  count_kernel<<<blocks_for(counts.numel(), 1), kRouteThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      mask, counts.mutable_data_ptr<int>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor on_host = counts.cpu();
  const int* count = on_host.const_data_ptr<int>();
  int64_t largest = 0;
  for (unsigned b = 0; b < mask.images; ++b) {
    int64_t sum = 0;
    for (unsigned stretch = 0; stretch < mask.stretches; ++stretch) {
      sum += *count++;
    }
    largest = std::max(largest, sum);
  }
  return largest;
}

std::tuple<at::Tensor, at::Tensor> route(const at::Tensor& keep, std::optional<int64_t> capacity) {
  check_query_route(keep, capacity);
  const c10::cuda::CUDAGuard guard(keep.device());
  const at::Tensor contiguous = keep.contiguous();
  const unsigned queries = keep.size(1), stretches = (queries + kStretch - 1) / kStretch;
  const Mask mask{contiguous.const_data_ptr<bool>(), static_cast<unsigned>(keep.size(0)), queries, stretches};
  const int64_t slots = capacity ? *capacity : keep.numel() > 0 ? largest_count(mask, keep) : 0;
  at::Tensor index = at::empty({mask.images, slots}, keep.options().dtype(at::kLong));
  at::Tensor valid = at::empty({mask.images, slots}, keep.options());
  if (keep.numel() > 0) {
    route_kernel<<<
        blocks_for(int64_t(mask.images) * mask.stretches, 1), kRouteThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        mask, static_cast<int>(slots), index.mutable_data_ptr<int64_t>(), valid.mutable_data_ptr<bool>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {index, valid};
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("query_route", &detrx::cuda::route);
}
