// One warp that calls the intrinsic functions, to compare their results with what they are defined to be.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

namespace detrx {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Results (operations, 32) in the order of the lines below.
__global__ void warp_operations(const int* x, int* y) {
  const int lane = threadIdx.x, number = x[lane];
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int row = 0;
  const auto put = [&](int result) { y[32 * row++ + lane] = result; };
  put(__shfl_xor_sync(kAllLanes, number, 5));
  put(__shfl_xor_sync(kAllLanes, number, 11, 8));
  put(__shfl_sync(kAllLanes, number, 7 * lane));
  put(__shfl_sync(kAllLanes, number, lane + 3, 16));
  put(__shfl_up_sync(kAllLanes, number, 3));
  put(__shfl_up_sync(kAllLanes, number, 3, 8));
  put(__shfl_down_sync(kAllLanes, number, 5));
  put(__shfl_down_sync(half, number, 5, 16));
  put(__ballot_sync(kAllLanes, number > 0));
  put(__ballot_sync(half, number > 0));
  put(__any_sync(half, number == x[3]));
  put(__all_sync(half, number != x[3]));
  put(__match_any_sync(kAllLanes, number % 3));
  put(__reduce_add_sync(kAllLanes, number));
  put(__reduce_add_sync(half, unsigned(number)));
  put(__reduce_min_sync(half, number));
  put(__reduce_max_sync(half, number));
  put(__reduce_min_sync(half, unsigned(number)));
  put(__reduce_max_sync(half, unsigned(number)));
  put(__reduce_and_sync(half, unsigned(number)));
  put(__reduce_or_sync(half, unsigned(number)));
  put(__reduce_xor_sync(half, unsigned(number)));
  put(__popc(unsigned(number)));
  put(__clz(number));
  put(__ffs(number));
  put(__brev(unsigned(number)));
  put(int(__umulhi(unsigned(number), 0x87654321u)));
  put(__mulhi(number, 0x87654321));
}

// Results (operations), of one counter each that all lanes change.
__global__ void atomic_operations(const int* x, int* y) {
  const int number = x[threadIdx.x];
  __shared__ unsigned counters[2];
  if (threadIdx.x < 2) {
    counters[threadIdx.x] = 0;
  }
  __syncwarp();
  int* target = y;
  atomicAdd(target++, number);
  atomicSub(target++, number);
  atomicMax(target++, number);
  atomicMin(target++, number);
  atomicOr(target++, number);
  atomicXor(target++, number);
  atomicInc(reinterpret_cast<unsigned*>(target++), 6);
  atomicDec(reinterpret_cast<unsigned*>(target++), 6);
  atomicAdd(reinterpret_cast<float*>(target++), float(number % 1000));
  for (int before = atomicAdd(target, 0), expected;; before = expected) {  // a sum of squares
    expected = atomicCAS(target, before, before + number % 100 * (number % 100));
    if (expected == before) {
      break;
    }
  }
  ++target;
  atomicAdd(reinterpret_cast<__half2*>(target++), __floats2half2_rn(1, number % 2));
  atomicAdd(reinterpret_cast<__nv_bfloat162*>(target++), __floats2bfloat162_rn(1, number % 2));
  // Each lane gets another one of the counter's values.
  const unsigned ticket = atomicAdd(&counters[0], 1u);
  atomicOr(&counters[1], 1u << ticket);
  __syncwarp();
  if (threadIdx.x == 0) {
    *target++ = counters[1];
  }
}

// a + b, a - b, a * b and a * b + c of bits (N, 2): results (N, 4, 2)
template <typename Two>
__global__ void reduced_arithmetic(const Two* a, const Two* b, const Two* c, int count, Two* results) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    results[4 * i] = __hadd2(a[i], b[i]);
    results[4 * i + 1] = __hsub2(a[i], b[i]);
    results[4 * i + 2] = __hmul2(a[i], b[i]);
    results[4 * i + 3] = __hfma2(a[i], b[i], c[i]);
  }
}

// float32 to 16 bits and back.
__global__ void conversions(const float* x, int count, unsigned short* bits, float* back) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const __half half = __float2half_rn(x[i]);
    const __nv_bfloat16 bfloat16 = __float2bfloat16_rn(x[i]);
    bits[2 * i] = __half_as_ushort(half);
    bits[2 * i + 1] = __bfloat16_as_ushort(bfloat16);
    back[2 * i] = __half2float(half);
    back[2 * i + 1] = __bfloat162float(bfloat16);
  }
}

at::Tensor run_warp_operations(const at::Tensor& x, int64_t rows) {
  at::Tensor y = at::empty({rows, 32}, x.options());
  warp_operations<<<1, 32>>>(x.const_data_ptr<int>(), y.mutable_data_ptr<int>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

void run_atomic_operations(const at::Tensor& x, const at::Tensor& y) {
  atomic_operations<<<1, 32>>>(x.const_data_ptr<int>(), y.mutable_data_ptr<int>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename Two>
void launch_arithmetic(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& results) {
  const auto numbers = [](const at::Tensor& x) { return static_cast<const Two*>(x.const_data_ptr()); };
  reduced_arithmetic<Two><<<1, 32>>>(
      numbers(a), numbers(b), numbers(c), static_cast<int>(a.size(0)), static_cast<Two*>(results.mutable_data_ptr()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor run_reduced_arithmetic(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  at::Tensor results = at::empty({a.size(0), 4, 2}, a.options());
  if (a.scalar_type() == at::kHalf) {
    launch_arithmetic<__half2>(a, b, c, results);
  } else {
    launch_arithmetic<__nv_bfloat162>(a, b, c, results);
  }
  return results;
}

std::tuple<at::Tensor, at::Tensor> run_conversions(const at::Tensor& x) {
  at::Tensor bits = at::empty({x.numel(), 2}, x.options().dtype(at::kUInt16));
  at::Tensor back = at::empty({x.numel(), 2}, x.options());
  conversions<<<1, 32>>>(
      x.const_data_ptr<float>(), static_cast<int>(x.numel()), bits.mutable_data_ptr<uint16_t>(),
      back.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {bits, back};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("_run_warp_operations(Tensor x, int rows) -> Tensor");
  m.def("_run_atomic_operations(Tensor x, Tensor(a!) y) -> ()");
  m.def("_run_reduced_arithmetic(Tensor a, Tensor b, Tensor c) -> Tensor");
  m.def("_run_conversions(Tensor x) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(detrx, CUDA, m) {
  m.impl("_run_warp_operations", &detrx::run_warp_operations);
  m.impl("_run_atomic_operations", &detrx::run_atomic_operations);
  m.impl("_run_reduced_arithmetic", &detrx::run_reduced_arithmetic);
  m.impl("_run_conversions", &detrx::run_conversions);
}
