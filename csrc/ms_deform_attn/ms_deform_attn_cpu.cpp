// CPU implementation of detrx::ms_deform_attn: threading and the choice of instruction set.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../cpu_dispatch.h"
#include "bilinear.h"
#include "ms_deform_attn.h"

namespace detrx {
namespace {

// Height, width and first token of the level that each of a query's L * P points samples.
struct LevelTable {
  const int32_t* height;
  const int32_t* width;
  const int32_t* start;
};

}  // namespace

#define DETRX_INLINE inline __attribute__((always_inline))

#define DETRX_TARGET
namespace isa_default {
namespace {
constexpr int kVectorBytes = 16;
#include "cpu_kernel.inl"
}  // namespace
}  // namespace isa_default
#undef DETRX_TARGET

#if defined(__x86_64__)
#define DETRX_TARGET __attribute__((target("avx2,fma")))
namespace isa_avx2 {
namespace {
constexpr int kVectorBytes = 32;
#include "cpu_kernel.inl"
}  // namespace
}  // namespace isa_avx2
#undef DETRX_TARGET

#define DETRX_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))
namespace isa_avx512 {
namespace {
constexpr int kVectorBytes = 64;
#include "cpu_kernel.inl"
}  // namespace
}  // namespace isa_avx512
#undef DETRX_TARGET
#endif

namespace {

template <typename T>
void forward_range(const DeformAttnForward<T>& args, const LevelTable& levels, int64_t begin, int64_t end) {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return isa_avx512::forward_range(args, levels, begin, end);
    case CpuIsa::Avx2:
      return isa_avx2::forward_range(args, levels, begin, end);
#endif
    default:
      return isa_default::forward_range(args, levels, begin, end);
  }
}

template <typename T>
void backward_range(const DeformAttnBackward<T>& args, int64_t begin, int64_t end) {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return isa_avx512::backward_range(args, begin, end);
    case CpuIsa::Avx2:
      return isa_avx2::backward_range(args, begin, end);
#endif
    default:
      return isa_default::backward_range(args, begin, end);
  }
}

template <typename T>
void forward(const DeformAttnForward<T>& args) {
  const DeformAttnSizes& n = args.sizes;
  std::vector<int32_t> table(3 * n.L * n.P);
  for (int64_t i = 0; i < n.L * n.P; ++i) {
    const int64_t level = i / n.P;
    table[i] = static_cast<int32_t>(args.spatial_shapes[2 * level]);
    table[n.L * n.P + i] = static_cast<int32_t>(args.spatial_shapes[2 * level + 1]);
    table[2 * n.L * n.P + i] = static_cast<int32_t>(args.level_start_index[level]);
  }
  const LevelTable levels{table.data(), table.data() + n.L * n.P, table.data() + 2 * n.L * n.P};
  const int64_t work_per_item = std::max<int64_t>(n.L * n.P * n.D, 1);
  const int64_t grain = std::max<int64_t>(32768 / work_per_item, 1);
  at::parallel_for(0, n.B * n.M * n.Q, grain, [&](int64_t begin, int64_t end) {
    forward_range(args, levels, begin, end);
  });
}

template <typename T>
void backward(const DeformAttnBackward<T>& args) {
  const DeformAttnSizes& n = args.sizes;
  at::parallel_for(0, n.B * n.M * n.L, 1, [&](int64_t begin, int64_t end) { backward_range(args, begin, end); });
}

// float16 and bfloat16 are computed in float32.
at::ScalarType compute_type(const at::Tensor& value) {
  return at::isReducedFloatingType(value.scalar_type()) ? at::kFloat : value.scalar_type();
}

at::Tensor ms_deform_attn_cpu(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const DeformAttnSizes n = check_ms_deform_attn(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const at::ScalarType type = compute_type(value);
  const at::Tensor v = value.to(type).contiguous();
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  const at::Tensor locations = sampling_locations.to(type).contiguous();
  const at::Tensor attention = attention_weights.to(type).contiguous();
  at::Tensor output = at::zeros({n.B, n.Q, n.M * n.D}, v.options());
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn", [&] {
    forward(DeformAttnForward<scalar_t>{
        n, v.const_data_ptr<scalar_t>(), shapes.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
        locations.const_data_ptr<scalar_t>(), attention.const_data_ptr<scalar_t>(),
        output.mutable_data_ptr<scalar_t>()});
  });
  return output.to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward_cpu(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const DeformAttnSizes n = check_ms_deform_attn(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_ms_deform_attn_grad(n, value, grad_output);
  const at::ScalarType type = compute_type(value);
  const at::Tensor grad = grad_output.to(type).contiguous();
  const at::Tensor v = value.to(type).contiguous();
  const at::Tensor shapes = spatial_shapes.to(at::kLong).contiguous();
  const at::Tensor starts = level_start_index.to(at::kLong).contiguous();
  const at::Tensor locations = sampling_locations.to(type).contiguous();
  const at::Tensor attention = attention_weights.to(type).contiguous();
  at::Tensor grad_value = at::zeros_like(v);
  at::Tensor grad_locations = at::empty_like(locations);
  at::Tensor grad_attention = at::empty_like(attention);
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn_backward", [&] {
    backward(DeformAttnBackward<scalar_t>{
        n, grad.const_data_ptr<scalar_t>(), v.const_data_ptr<scalar_t>(), shapes.const_data_ptr<int64_t>(),
        starts.const_data_ptr<int64_t>(), locations.const_data_ptr<scalar_t>(), attention.const_data_ptr<scalar_t>(),
        grad_value.mutable_data_ptr<scalar_t>(), grad_locations.mutable_data_ptr<scalar_t>(),
        grad_attention.mutable_data_ptr<scalar_t>()});
  });
  const at::ScalarType result = value.scalar_type();
  return {grad_value.to(result), grad_locations.to(result), grad_attention.to(result)};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("ms_deform_attn", &detrx::ms_deform_attn_cpu);
  m.impl("ms_deform_attn_backward", &detrx::ms_deform_attn_backward_cpu);
}
