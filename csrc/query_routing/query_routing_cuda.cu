// CUDA implementation of query routing. One launch serves several tensors; rows are copied in vectors of up to 16 bytes.
// Only query_route without a capacity waits for the device: to read the largest count.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "query_routing.h"

namespace detrx {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileRows = 16;  // queries that a block of merge_kernel writes
constexpr size_t kTensorsPerLaunch = 8;
constexpr int64_t kMaxBlocks = 1 << 20;

// A RowCopy, and how the threads share a row.
struct VectorCopy {
  RowCopy rows;
  int width;  // bytes of a vector, which divide all addresses
  int lanes;  // threads per row, a power of 2 up to kWarp
};

struct VectorCopies {
  VectorCopy items[kTensorsPerLaunch];
};

VectorCopy vectorize(const RowCopy& rows) {
  int64_t alignment = rows.bytes | reinterpret_cast<int64_t>(rows.output);
  for (const Rows& source : {rows.queries, rows.packed}) {
    alignment |= reinterpret_cast<int64_t>(source.data) | source.batch_stride | source.row_stride;
  }
  VectorCopy copy{rows, 16, 1};
  while (alignment % copy.width != 0) {
    copy.width /= 2;
  }
  while (copy.lanes < kWarp && copy.lanes * copy.width < rows.bytes) {
    copy.lanes *= 2;
  }
  return copy;
}

template <typename Vector>
__device__ __forceinline__ void write_vectors(char* output, const char* source, int64_t bytes, int lane, int lanes) {
  Vector* out = reinterpret_cast<Vector*>(output);
  const Vector* in = reinterpret_cast<const Vector*>(source);
  for (int64_t i = lane; i < bytes / int64_t(sizeof(Vector)); i += lanes) {
    out[i] = in == nullptr ? Vector{} : in[i];
  }
}

// Called by the `lanes` threads that share the row.
__device__ __forceinline__ void write_row(const VectorCopy& copy, int64_t row, const char* source, int lane) {
  const int64_t bytes = copy.rows.bytes;
  char* output = copy.rows.output + row * bytes;
  switch (copy.width) {
    case 16:
      return write_vectors<uint4>(output, source, bytes, lane, copy.lanes);
    case 8:
      return write_vectors<uint2>(output, source, bytes, lane, copy.lanes);
    case 4:
      return write_vectors<uint32_t>(output, source, bytes, lane, copy.lanes);
    case 2:
      return write_vectors<uint16_t>(output, source, bytes, lane, copy.lanes);
    default:
      return write_vectors<uint8_t>(output, source, bytes, lane, copy.lanes);
  }
}

// blockIdx.y: tensor; the blocks in x share the (b, k).
__global__ void gather_kernel(VectorCopies copies, RouteSizes n, const int64_t* index, const bool* valid) {
  const VectorCopy& copy = copies.items[blockIdx.y];
  const int rows = kThreads / copy.lanes, lane = threadIdx.x % copy.lanes;
  for (int64_t row = int64_t(blockIdx.x) * rows + threadIdx.x / copy.lanes; row < n.B * n.K;
       row += int64_t(gridDim.x) * rows) {
    const bool kept = valid[row];
    const int64_t query = index[row];
    CUDA_KERNEL_ASSERT((!kept || (query >= 0 && query < n.N)) && "query_gather: index is out of range");
    write_row(copy, row, gathered_row(copy.rows, row / n.K, query, kept), lane);
  }
}

// blockIdx.y: tensor; the blocks in x share the tiles of kTileRows queries of an image. A block first finds the slots of
// its queries: reading the image's indices, which the cache holds, costs less than a launch that would invert them.
__global__ void merge_kernel(
    VectorCopies copies, RouteSizes n, int64_t tiles, const int64_t* index, const bool* valid) {
  __shared__ int slots[kTileRows];
  const VectorCopy& copy = copies.items[blockIdx.y];
  const int rows = kThreads / copy.lanes, lane = threadIdx.x % copy.lanes;
  for (int64_t tile = blockIdx.x; tile < n.B * tiles; tile += gridDim.x) {
    const int64_t b = tile / tiles, first = tile % tiles * kTileRows;
    __syncthreads();
    if (threadIdx.x < kTileRows) {
      slots[threadIdx.x] = kNoSlot;
    }
    __syncthreads();
    for (int64_t k = threadIdx.x; k < n.K; k += kThreads) {
      if (valid[b * n.K + k]) {
        const int64_t query = index[b * n.K + k];
        CUDA_KERNEL_ASSERT(query >= 0 && query < n.N && "query_scatter: index is out of range");
        if (query >= first && query < first + kTileRows) {
          const int before = atomicExch(slots + (query - first), static_cast<int>(k));
          CUDA_KERNEL_ASSERT(before == kNoSlot && "query_scatter: index has a query twice");
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x / copy.lanes; i < kTileRows && first + i < n.N; i += rows) {
      write_row(copy, b * n.N + first + i, merged_row(copy.rows, b, first + i, slots[i]), lane);
    }
  }
}

// One block per image; the largest number of kept queries ends in `largest`, zero on entry.
__global__ void count_kernel(const bool* keep, int64_t images, int64_t queries, int* largest) {
  for (int64_t b = blockIdx.x; b < images; b += gridDim.x) {
    int count = 0;
    for (int64_t begin = 0; begin < queries; begin += kThreads) {
      const int64_t query = begin + threadIdx.x;
      count += __syncthreads_count(query < queries && keep[b * queries + query]);
    }
    if (threadIdx.x == 0) {
      atomicMax(largest, count);
    }
  }
}

// One block per image.
__global__ void route_kernel(
    const bool* keep, int64_t images, int64_t queries, int64_t capacity, int64_t* index, bool* valid) {
  __shared__ int warp_counts[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t b = blockIdx.x; b < images; b += gridDim.x) {
    int64_t count = 0;  // kept queries before this stretch of kThreads
    for (int64_t begin = 0; begin < queries; begin += kThreads) {
      const int64_t query = begin + threadIdx.x;
      const bool kept = query < queries && keep[b * queries + query];
      const unsigned votes = __ballot_sync(0xffffffffu, kept);
      if (lane == 0) {
        warp_counts[warp] = __popc(votes);
      }
      __syncthreads();
      int64_t slot = count + __popc(votes & ((1u << lane) - 1));
      for (int w = 0; w < kWarps; ++w) {
        slot += w < warp ? warp_counts[w] : 0;
        count += warp_counts[w];
      }
      CUDA_KERNEL_ASSERT((!kept || slot < capacity) && "query_route: an image keeps more queries than capacity");
      if (kept && slot < capacity) {
        index[b * capacity + slot] = query;
        valid[b * capacity + slot] = true;
      }
      __syncthreads();
    }
    for (int64_t slot = count + threadIdx.x; slot < capacity; slot += kThreads) {
      index[b * capacity + slot] = 0;
      valid[b * capacity + slot] = false;
    }
  }
}

unsigned blocks(int64_t count) {
  return static_cast<unsigned>(std::clamp<int64_t>(count, 1, kMaxBlocks));
}

// Calls launch(copies, number of them, rows of the narrowest block) for every kTensorsPerLaunch tensors.
template <typename Launch>
std::vector<at::Tensor> run(const RoutedCall& call, Launch launch) {
  const c10::cuda::CUDAGuard guard(call.index.device());
  for (size_t begin = 0; begin < call.copies.size(); begin += kTensorsPerLaunch) {
    const size_t count = std::min(call.copies.size() - begin, kTensorsPerLaunch);
    VectorCopies copies{};
    int rows = kThreads;
    for (size_t i = 0; i < count; ++i) {
      copies.items[i] = vectorize(call.copies[begin + i]);
      rows = std::min(rows, kThreads / copies.items[i].lanes);
    }
    launch(copies, static_cast<unsigned>(count), rows);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return call.outputs;
}

std::vector<at::Tensor> gather(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  return run(call, [&](const VectorCopies& copies, unsigned count, int rows) {
    const dim3 grid(blocks((n.B * n.K + rows - 1) / rows), count);
    gather_kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        copies, n, call.index.const_data_ptr<int64_t>(), call.valid.const_data_ptr<bool>());
  });
}

std::vector<at::Tensor> merge(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  TORCH_CHECK_VALUE(
      n.K <= std::numeric_limits<int>::max(), "query_scatter: index has more than 2^31 - 1 columns: ", n.K);
  const int64_t tiles = (n.N + kTileRows - 1) / kTileRows;
  return run(call, [&](const VectorCopies& copies, unsigned count, int) {
    const dim3 grid(blocks(n.B * tiles), count);
    merge_kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        copies, n, tiles, call.index.const_data_ptr<int64_t>(), call.valid.const_data_ptr<bool>());
  });
}

std::tuple<at::Tensor, at::Tensor> query_route_cuda(const at::Tensor& keep, std::optional<int64_t> capacity) {
  check_query_route(keep, capacity);
  const c10::cuda::CUDAGuard guard(keep.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor mask = keep.contiguous();
  const int64_t images = mask.size(0), queries = mask.size(1);
  TORCH_CHECK_VALUE(
      queries <= std::numeric_limits<int>::max(), "query_route: keep has more than 2^31 - 1 queries: ", queries);
  int64_t slots = capacity.value_or(0);
  if (!capacity && mask.numel() > 0) {
    at::Tensor largest = at::zeros({1}, mask.options().dtype(at::kInt));
    count_kernel<<<blocks(images), kThreads, 0, stream>>>(
        mask.const_data_ptr<bool>(), images, queries, largest.mutable_data_ptr<int>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    slots = largest.item<int>();
  }
  at::Tensor index = at::empty({images, slots}, mask.options().dtype(at::kLong));
  at::Tensor valid = at::empty({images, slots}, mask.options());
  if (mask.numel() > 0) {
    route_kernel<<<blocks(images), kThreads, 0, stream>>>(
        mask.const_data_ptr<bool>(), images, queries, slots, index.mutable_data_ptr<int64_t>(),
        valid.mutable_data_ptr<bool>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {index, valid};
}

std::vector<at::Tensor> query_gather_cuda(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  return gather(plan_gather(x, index, valid));
}

std::vector<at::Tensor> query_scatter_cuda(
    at::TensorList base, at::TensorList packed, const at::Tensor& index, const at::Tensor& valid) {
  return merge(plan_scatter(base, packed, index, valid));
}

std::vector<at::Tensor> query_unpack_cuda(
    at::TensorList packed, const at::Tensor& index, const at::Tensor& valid, int64_t queries) {
  return merge(plan_unpack(packed, index, valid, queries));
}

std::vector<at::Tensor> query_clear_cuda(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  return merge(plan_clear(x, index, valid));
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("query_route", &detrx::query_route_cuda);
  m.impl("query_gather", &detrx::query_gather_cuda);
  m.impl("query_scatter", &detrx::query_scatter_cuda);
  m.impl("query_unpack", &detrx::query_unpack_cuda);
  m.impl("query_clear", &detrx::query_clear_cuda);
}
