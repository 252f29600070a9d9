// Kernels without faults, which the emulation must run and not complain about. Each gives `count` numbers.

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <map>
#include <string>

namespace detrx {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks of 64 threads, two of them.

__global__ void reversed_in_a_loop(const int* x, int* y, int count) {
  __shared__ int shared[64];
  for (int first = blockIdx.x * 32; first < count; first += 64) {
    __syncthreads();
    shared[threadIdx.x] = x[first + threadIdx.x % 32];
    __syncthreads();
    if (threadIdx.x < 32) {
      y[first + threadIdx.x] = shared[63 - threadIdx.x];
    }
  }
}

__global__ void neighbours_in_warps(const int* x, int* y, int count) {
  __shared__ int shared[64];
  const int i = blockIdx.x * 64 + threadIdx.x;
  shared[threadIdx.x] = x[i];
  __syncwarp();
  const int other = shared[threadIdx.x ^ 1];
  __syncwarp();
  shared[threadIdx.x] = other;
  y[i] = shared[threadIdx.x];
}

// What a lane has seen of others, it shows to a third.
__global__ void chain_of_masks(const int* x, int* y, int count) {
  __shared__ int shared[64];
  const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
  shared[threadIdx.x] = x[i];
  if (lane < 2) {
    __syncwarp(3);
  }
  if (lane > 0) {
    __syncwarp(kAllLanes - 1);
  }
  y[i] = lane > 0 ? shared[threadIdx.x / 32 * 32] : x[i];
}

// Lanes that have exited are missed by no __syncwarp.
__global__ void exits_before_a_warp_barrier(const int* x, int* y, int count) {
  __shared__ int shared[64];
  const int i = blockIdx.x * 64 + threadIdx.x;
  if (threadIdx.x % 32 >= 30) {
    y[i] = 0;
    return;
  }
  shared[threadIdx.x] = x[i];
  __syncwarp();
  y[i] = shared[threadIdx.x / 32 * 32 + 29 - threadIdx.x % 32];
}

__global__ void histogram(const int* x, int* y, int count) {
  __shared__ int counts[8];
  if (threadIdx.x < 8) {
    counts[threadIdx.x] = 0;
  }
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    atomicAdd(&counts[x[i] & 7], 1);
  }
  __syncthreads();
  if (threadIdx.x < 8) {
    atomicAdd(&y[threadIdx.x], counts[threadIdx.x]);
  }
}

__device__ int& a_number(int which) {
  __shared__ int numbers[2];
  return numbers[which];
}

// Two arrays of dynamic memory, and static memory in a function of its own.
template <typename T>
__global__ void shared_memory_of_all_kinds(const int* x, int* y, int count) {
  extern __shared__ __align__(16) char memory[];
  T* first = reinterpret_cast<T*>(memory);
  short* second = reinterpret_cast<short*>(first + 64);
  __shared__ alignas(16) T third[2][64];
  const int i = blockIdx.x * 64 + threadIdx.x;
  first[threadIdx.x] = x[i];
  second[threadIdx.x] = static_cast<short>(x[i]);
  third[1][threadIdx.x] = x[i];
  if (threadIdx.x < 2) {
    a_number(threadIdx.x) = threadIdx.x + 1;
  }
  __syncthreads();
  y[i] = static_cast<int>(first[threadIdx.x ^ 33] + third[1][threadIdx.x ^ 35]) + second[threadIdx.x ^ 34] + a_number(0) * a_number(1);
}

__global__ void __launch_bounds__(64, 2) votes_of_blocks(const int* x, int* y, int count) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  const int positive = __syncthreads_count(x[i] > 0);
  const int any = __syncthreads_or(x[i] == x[0]), all = __syncthreads_and(x[i] > -1000);
  y[i] = positive * 4 + any * 2 + all;
}

// Threads of other warps take turns at bytes of one word.
__global__ void bytes_in_turns(const int* x, int* y, int count) {
  __shared__ unsigned char bytes[4];
  for (int turn = 0; turn < 4; ++turn) {
    if (threadIdx.x == unsigned(16 * turn)) {
      bytes[turn] = static_cast<unsigned char>(turn ? bytes[turn - 1] + 1 : 1);
    }
    __syncthreads();
  }
  y[blockIdx.x * 64 + threadIdx.x] = bytes[threadIdx.x % 4];
}

typedef void (*Kernel)(const int*, int*, int);

const std::map<std::string, Kernel> kKernels = {
    {"reversed_in_a_loop", &reversed_in_a_loop},
    {"neighbours_in_warps", &neighbours_in_warps},
    {"chain_of_masks", &chain_of_masks},
    {"exits_before_a_warp_barrier", &exits_before_a_warp_barrier},
    {"histogram", &histogram},
    {"shared_memory_of_all_kinds", &shared_memory_of_all_kinds<double>},
    {"votes_of_blocks", &votes_of_blocks},
    {"bytes_in_turns", &bytes_in_turns},
};

at::Tensor run_sound(const at::Tensor& x, const std::string name) {
  at::Tensor y = at::zeros_like(x);
  const Kernel kernel = kKernels.at(name);
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
  kernel<<<2, dim3(64), 100000, c10::cuda::getCurrentCUDAStream()>>>(
      x.const_data_ptr<int>(), y.mutable_data_ptr<int>(), static_cast<int>(x.numel()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("_run_sound(Tensor x, str name) -> Tensor");
}

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("_run_sound", &detrx::run_sound);
}
