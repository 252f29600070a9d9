// Kernels with one fault each, which the emulation must find, for blocks of 64 threads.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include <cstdint>
#include <map>
#include <string>

namespace detrx {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

// Races

__global__ void race_between_lanes(float* x, int count) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void race_between_warps(float* x, int count) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  x[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// A shuffle is no barrier.
__global__ void race_across_a_shuffle(float* x, int count) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  const float other = __shfl_xor_sync(kAllLanes, x[threadIdx.x], 1);
  x[threadIdx.x] = shared[threadIdx.x ^ 1] + other;
}

// The barrier is for half of the lanes that meet.
__global__ void race_with_another_mask(float* x, int count) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  x[threadIdx.x] = shared[threadIdx.x ^ 16];
}

__global__ void race_with_the_next_item(float* x, int count) {
  __shared__ float shared[kThreads];
  for (int i = 0; i < 2; ++i) {
    shared[threadIdx.x] = x[threadIdx.x] + i;
    __syncthreads();
    x[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  }
}

__global__ void race_between_blocks(float* x, int count) {
  if (threadIdx.x == 0) {
    x[0] = blockIdx.x;
  }
}

__global__ void race_with_an_atomic(float* x, int count) {
  if (threadIdx.x == 0) {
    x[0] = 1;
  } else {
    atomicAdd(x, 1.0f);
  }
}

__global__ void race_in_global_memory(float* x, int count) {
  x[threadIdx.x] = 1;
  x[threadIdx.x ^ 32] += 1;
}

// Bytes of one word
__global__ void race_of_bytes(float* x, int count) {
  unsigned char* bytes = reinterpret_cast<unsigned char*>(x);
  bytes[threadIdx.x + (threadIdx.x == 5)] = 1;
}

// Memory

__global__ void read_beyond_a_tensor(float* x, int count) {
  x[threadIdx.x] = x[threadIdx.x + count - kThreads + 1];
}

__global__ void write_beyond_a_tensor(float* x, int count) {
  x[threadIdx.x + count - kThreads + 1] = 1;
}

__global__ void read_before_a_tensor(float* x, int count) {
  x[threadIdx.x] = x[int(threadIdx.x) - 1];
}

__global__ void atomic_beyond_a_tensor(float* x, int count) {
  atomicAdd(x + count, 1.0f);
}

__global__ void copy_beyond_a_tensor(float* x, int count) {
  if (threadIdx.x == 0) {
    char local[64];
    memcpy(local, x + count - 15, blockDim.x);
    x[0] = local[63];
  }
}

__global__ void null_pointer(float* x, int count) {
  x[threadIdx.x] = *static_cast<float*>(nullptr);
}

__global__ void beyond_a_shared_array(float* x, int count) {
  __shared__ float first[kThreads];
  __shared__ float second[kThreads];
  float* pointer = first;
  second[threadIdx.x] = 0;
  pointer[threadIdx.x + 1] = 0;
  x[threadIdx.x] = second[threadIdx.x];
}

__global__ void beyond_dynamic_shared_memory(float* x, int count) {
  extern __shared__ float dynamic[];
  dynamic[threadIdx.x + 1] = x[threadIdx.x];
}

__global__ void beyond_a_local_array(float* x, int count) {
  float local[4] = {};
  local[threadIdx.x % 4 + (threadIdx.x == 63)] = x[threadIdx.x];
  x[threadIdx.x] = local[threadIdx.x / 16];
}

__global__ void uninitialised_shared_memory(float* x, int count) {
  __shared__ float shared[kThreads];
  if (threadIdx.x != 7) {
    shared[threadIdx.x] = 0;
  }
  x[threadIdx.x] = shared[threadIdx.x];
}

__global__ void uninitialised_sum(float* x, int count) {
  __shared__ int sum;
  atomicAdd(&sum, 1);
}

__global__ void misaligned_vector(float* x, int count) {
  const float4 four = *reinterpret_cast<float4*>(x + 1);
  x[threadIdx.x] = four.x;
}

__global__ void misaligned_number(float* x, int count) {
  const double number = *reinterpret_cast<double*>(x + 1);
  x[threadIdx.x] = number;
}

__global__ void misaligned_atomic(float* x, int count) {
  atomicAdd(reinterpret_cast<float4*>(x + 2), make_float4(1, 1, 1, 1));
}

__global__ void vector_atomic_in_shared_memory(float* x, int count) {
  __shared__ float4 sum;
  if (threadIdx.x == 0) {
    sum = make_float4(0, 0, 0, 0);
  }
  __syncthreads();
  atomicAdd(&sum, make_float4(1, 1, 1, 1));
}

// Synchronisation

__global__ void barriers_in_both_branches(float* x, int count) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_after_an_exit(float* x, int count) {
  if (threadIdx.x == 63) {
    return;
  }
  __syncthreads();
}

__global__ void warp_barriers_in_both_branches(float* x, int count) {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}

__global__ void lanes_that_never_come(float* x, int count) {
  if (threadIdx.x % 2) {
    __syncwarp();
  }
  __syncthreads();
}

__global__ void mask_without_the_caller(float* x, int count) {
  __syncwarp(1);
}

__global__ void shuffle_from_outside_of_the_mask(float* x, int count) {
  if (threadIdx.x % 32 < 16) {
    x[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 16);
  }
}

__global__ void shuffle_from_an_exited_lane(float* x, int count) {
  if (threadIdx.x % 32 == 3) {
    return;
  }
  x[threadIdx.x] = __shfl_sync(kAllLanes, x[threadIdx.x], 3);
}

__global__ void wait_for_another_block(float* x, int count) {
  volatile float* flag = x;
  if (blockIdx.x == 0) {
    while (*flag != 1) {
    }
  } else {
    *flag = blockIdx.x;
  }
}

// Launches

__global__ void __launch_bounds__(32) more_threads_than_bounds(float* x, int count) {}

__global__ void too_much_static_shared_memory(float* x, int count) {
  __shared__ float shared[12289];
  shared[threadIdx.x] = 0;
}

__global__ void too_much_dynamic_shared_memory(float* x, int count) {}

__global__ void too_much_shared_memory_of_both_kinds(float* x, int count) {
  __shared__ float shared[12288];
  shared[threadIdx.x] = 0;
}

__global__ void no_blocks(float* x, int count) {}

// Arithmetic

__global__ void integer_overflow(float* x, int count) {
  x[threadIdx.x] = (count + 2147483647 - kThreads) * 2;
}

__global__ void assertion(float* x, int count) {
  CUDA_KERNEL_ASSERT(x[threadIdx.x] != x[threadIdx.x] && "numbers are NaN");
}

typedef void (*Kernel)(float*, int);

#define FAULT(name) {#name, &name}
const std::map<std::string, Kernel> kFaults = {
    FAULT(race_between_lanes), FAULT(race_between_warps), FAULT(race_across_a_shuffle), FAULT(race_with_another_mask),
    FAULT(race_with_the_next_item), FAULT(race_between_blocks), FAULT(race_with_an_atomic),
    FAULT(race_in_global_memory), FAULT(race_of_bytes), FAULT(read_beyond_a_tensor), FAULT(write_beyond_a_tensor),
    FAULT(read_before_a_tensor), FAULT(atomic_beyond_a_tensor), FAULT(copy_beyond_a_tensor), FAULT(null_pointer),
    FAULT(beyond_a_shared_array), FAULT(beyond_dynamic_shared_memory), FAULT(beyond_a_local_array),
    FAULT(uninitialised_shared_memory), FAULT(uninitialised_sum), FAULT(misaligned_vector), FAULT(misaligned_number),
    FAULT(misaligned_atomic), FAULT(vector_atomic_in_shared_memory), FAULT(barriers_in_both_branches),
    FAULT(barrier_after_an_exit), FAULT(warp_barriers_in_both_branches), FAULT(lanes_that_never_come),
    FAULT(mask_without_the_caller), FAULT(shuffle_from_outside_of_the_mask), FAULT(shuffle_from_an_exited_lane),
    FAULT(wait_for_another_block), FAULT(more_threads_than_bounds), FAULT(too_much_static_shared_memory),
    FAULT(too_much_dynamic_shared_memory), FAULT(too_much_shared_memory_of_both_kinds), FAULT(no_blocks),
    FAULT(integer_overflow), FAULT(assertion),
};

void run_fault(const at::Tensor& x, const std::string name, int64_t blocks) {
  const Kernel kernel = kFaults.at(name);
  const bool too_much = kernel == &too_much_dynamic_shared_memory;
  kernel<<<kernel == &no_blocks ? 0 : blocks, kThreads, too_much ? 49153 : kThreads * sizeof(float)>>>(
      x.mutable_data_ptr<float>(), static_cast<int>(x.numel()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("_run_fault(Tensor(a!) x, str name, int blocks) -> ()");
}

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("_run_fault", &detrx::run_fault);
}
