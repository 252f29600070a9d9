// CUDA implementation of detrx::query_gather, query_scatter, query_unpack and query_clear. One launch serves several
// tensors; rows are copied in vectors of up to 16 bytes. Nothing waits for the device.

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

constexpr int kTileRows = 16;    // queries that a block of merge_kernel writes
constexpr int kRange = 2048;     // queries whose slots a block of find_slots_kernel finds
constexpr int kTensorsPerLaunch = 8;
constexpr int kVectors = 4;      // of a thread, that are loaded together
// Bytes of index and valid that all blocks of merge_kernel may read: the cache takes about as long for them as a launch.
constexpr int64_t kMaxScanned = int64_t(16) << 20;

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
__device__ __forceinline__ void write_vectors(
    char* __restrict__ output, const char* __restrict__ source, int64_t bytes, int lane, int lanes) {
  Vector* __restrict__ out = reinterpret_cast<Vector*>(output);
  const Vector* __restrict__ in = reinterpret_cast<const Vector*>(source);
  const int64_t count = bytes / int64_t(sizeof(Vector));
#pragma unroll 1
  for (int64_t first = lane; first < count; first += kVectors * lanes) {
    Vector values[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      values[i] = in != nullptr && first + i * lanes < count ? in[first + i * lanes] : Vector{};
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (first + i * lanes < count) {
        out[first + i * lanes] = values[i];
      }
    }
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
__global__ void __launch_bounds__(kThreads) gather_kernel(
    VectorCopies copies, RouteSizes n, const int64_t* index, const bool* valid) {
  const VectorCopy& copy = copies.items[blockIdx.y];
  const unsigned rows = kThreads / copy.lanes, slots = n.K, count = n.B * n.K;
  for (unsigned row = blockIdx.x * rows + threadIdx.x / copy.lanes; row < count; row += gridDim.x * rows) {
    const bool kept = valid[row];
    const int64_t query = index[row];
    const bool exists = query >= 0 && query < n.N;
    write_row(copy, row, gathered_row(copy.rows, row / slots, query, kept && exists), threadIdx.x % copy.lanes);
    CUDA_KERNEL_ASSERT((!kept || exists) && "query_gather: index is out of range");
  }
}

// The block finds the slots of queries [first, first + count) of image b.
__device__ __forceinline__ void find_slots(
    const RouteSizes& n, const int64_t* index, const bool* valid, int64_t b, int64_t first, int count, int* slots) {
  constexpr int kAhead = 4;  // slots of a thread, that are loaded together
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    slots[i] = kNoSlot;
  }
  __syncthreads();
  bool exist = true, once = true;
#pragma unroll 1
  for (int64_t begin = threadIdx.x; begin < n.K; begin += kAhead * kThreads) {
    int64_t queries[kAhead];
    bool kept[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = begin + i * kThreads;
      kept[i] = k < n.K && valid[b * n.K + k];
      queries[i] = k < n.K ? index[b * n.K + k] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      exist &= !kept[i] || (queries[i] >= 0 && queries[i] < n.N);
      if (kept[i] && queries[i] >= first && queries[i] < first + count) {
        once &= atomicExch(slots + (queries[i] - first), static_cast<int>(begin + i * kThreads)) == kNoSlot;
      }
    }
  }
  CUDA_KERNEL_ASSERT(exist && "query_scatter: index is out of range");
  CUDA_KERNEL_ASSERT(once && "query_scatter: index has a query twice");
  __syncthreads();
}

// blockIdx.y: tensor; the blocks in x share the tiles of kTileRows queries of an image, whose slots they find first.
__global__ void __launch_bounds__(kThreads) merge_kernel(
    VectorCopies copies, RouteSizes n, int tiles, const int64_t* index, const bool* valid) {
  __shared__ int slots[kTileRows];
  const VectorCopy& copy = copies.items[blockIdx.y];
  const int rows = kThreads / copy.lanes, lane = threadIdx.x % copy.lanes;
  for (int64_t tile = blockIdx.x; tile < n.B * tiles; tile += gridDim.x) {
    const int64_t b = tile / tiles, first = tile % tiles * kTileRows;
    find_slots(n, index, valid, b, first, kTileRows, slots);
    for (int i = threadIdx.x / copy.lanes; i < kTileRows && first + i < n.N; i += rows) {
      write_row(copy, b * n.N + first + i, merged_row(copy.rows, b, first + i, slots[i]), lane);
    }
  }
}

// Where the indices are too many to be read again for every tile: the slot of each query (B, N), or kNoSlot.
__global__ void __launch_bounds__(kThreads) find_slots_kernel(
    RouteSizes n, int ranges, const int64_t* index, const bool* valid, int* output) {
  __shared__ int slots[kRange];
  for (int64_t range = blockIdx.x; range < n.B * ranges; range += gridDim.x) {
    const int64_t b = range / ranges, first = range % ranges * kRange;
    find_slots(n, index, valid, b, first, kRange, slots);
    for (int i = threadIdx.x; i < kRange && first + i < n.N; i += kThreads) {
      output[b * n.N + first + i] = slots[i];
    }
  }
}

// blockIdx.y: tensor; the blocks in x share the (b, n).
__global__ void __launch_bounds__(kThreads) merge_by_slot_kernel(VectorCopies copies, RouteSizes n, const int* slots) {
  const VectorCopy& copy = copies.items[blockIdx.y];
  const unsigned rows = kThreads / copy.lanes, queries = n.N, count = n.B * n.N;
  for (unsigned row = blockIdx.x * rows + threadIdx.x / copy.lanes; row < count; row += gridDim.x * rows) {
    const unsigned b = row / queries;
    write_row(copy, row, merged_row(copy.rows, b, row - b * queries, slots[row]), threadIdx.x % copy.lanes);
  }
}

// Calls launch(copies, number of them, rows of the narrowest block) for every kTensorsPerLaunch tensors.
template <typename Launch>
void for_each_launch(const RoutedCall& call, Launch launch) {
  for (size_t begin = 0; begin < call.copies.size(); begin += kTensorsPerLaunch) {
    const int count = static_cast<int>(std::min<size_t>(call.copies.size() - begin, kTensorsPerLaunch));
    VectorCopies copies{};
    int rows = kThreads;
    for (int i = 0; i < count; ++i) {
      copies.items[i] = vectorize(call.copies[begin + i]);
      rows = std::min(rows, kThreads / copies.items[i].lanes);
    }
    launch(copies, count, rows);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

std::vector<at::Tensor> gather(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  const c10::cuda::CUDAGuard guard(call.index.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  for_each_launch(call, [&](const VectorCopies& copies, int count, int rows) {
    gather_kernel<<<dim3(blocks_for(n.B * n.K, rows), count), kThreads, 0, stream>>>(
        copies, n, call.index.const_data_ptr<int64_t>(), call.valid.const_data_ptr<bool>());
  });
  return call.outputs;
}

std::vector<at::Tensor> merge(const RoutedCall& call) {
  const RouteSizes& n = call.sizes;
  const c10::cuda::CUDAGuard guard(call.index.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t* index = call.index.const_data_ptr<int64_t>();
  const bool* valid = call.valid.const_data_ptr<bool>();
  const int tiles = static_cast<int>((n.N + kTileRows - 1) / kTileRows);
  if (n.B * tiles * n.K * int64_t(sizeof(int64_t) + sizeof(bool)) <= kMaxScanned) {
    for_each_launch(call, [&](const VectorCopies& copies, int count, int) {
      merge_kernel<<<dim3(blocks_for(n.B * tiles, 1), count), kThreads, 0, stream>>>(copies, n, tiles, index, valid);
    });
    return call.outputs;
  }
  at::Tensor slots = at::empty({n.B, n.N}, call.index.options().dtype(at::kInt));
  const int ranges = static_cast<int>((n.N + kRange - 1) / kRange);
  find_slots_kernel<<<blocks_for(n.B * ranges, 1), kThreads, 0, stream>>>(
      n, ranges, index, valid, slots.mutable_data_ptr<int>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  for_each_launch(call, [&](const VectorCopies& copies, int count, int rows) {
    merge_by_slot_kernel<<<dim3(blocks_for(n.B * n.N, rows), count), kThreads, 0, stream>>>(
        copies, n, slots.const_data_ptr<int>());
  });
  return call.outputs;
}

}  // namespace
}  // namespace detrx::cuda

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  detrx::RowOperators<&detrx::cuda::gather, &detrx::cuda::merge>::register_in(m);
}
