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
auto forward_kernel() {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return &isa_avx512::forward_range<T>;
    case CpuIsa::Avx2:
      return &isa_avx2::forward_range<T>;
#endif
    default:
      return &isa_default::forward_range<T>;
  }
}

template <typename T>
auto backward_kernel() {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return &isa_avx512::backward_part<T>;
    case CpuIsa::Avx2:
      return &isa_avx2::backward_part<T>;
#endif
    default:
      return &isa_default::backward_part<T>;
  }
}

class LevelTableStorage {
 public:
  LevelTableStorage(const DeformAttnSizes& n, const int64_t* spatial_shapes, const int64_t* level_start_index) {
    for (int64_t i = 0; i < n.L * n.P; ++i) {
      heights_.push_back(static_cast<int32_t>(spatial_shapes[2 * (i / n.P)]));
      widths_.push_back(static_cast<int32_t>(spatial_shapes[2 * (i / n.P) + 1]));
      starts_.push_back(static_cast<int32_t>(level_start_index[i / n.P]));
    }
  }
  LevelTable table() const {
    return {heights_.data(), widths_.data(), starts_.data()};
  }

 private:
  std::vector<int32_t> heights_, widths_, starts_;
};

template <typename T>
void forward(const DeformAttnForward<T>& args) {
  const DeformAttnSizes& n = args.sizes;
  const LevelTableStorage levels(n, args.spatial_shapes, args.level_start_index);
  const std::vector<T> zeros(n.D);
  const auto kernel = forward_kernel<T>();
  const int64_t grain = std::max<int64_t>(32768 / std::max<int64_t>(n.L * n.P * n.D, 1), 1);
  at::parallel_for(0, n.B * n.Q * n.M, grain, [&](int64_t begin, int64_t end) {
    kernel(args, levels.table(), zeros.data(), begin, end);
  });
}

// Every element of grad_value belongs to one image, head and level. Threads share the work by these, so that they never
// collide, and every element sums its terms in the same order whatever the number of threads. Few large parts are
// better than many: a part reads the queries' points from one end to the other.
template <typename T>
void backward(const DeformAttnBackward<T>& args) {
  const DeformAttnSizes& n = args.sizes;
  const LevelTableStorage levels(n, args.spatial_shapes, args.level_start_index);
  const std::vector<T> zeros(n.D);
  const auto kernel = backward_kernel<T>();
  const int64_t threads = at::get_num_threads();
  const auto balanced = [threads](int64_t parts) { return parts % threads == 0 || parts >= 4 * threads; };
  int64_t head_parts = 1;
  while (head_parts < n.M && !(n.M % head_parts == 0 && balanced(n.B * head_parts))) {
    ++head_parts;
  }
  const int64_t level_parts = balanced(n.B * head_parts) ? 1 : n.L;
  const int64_t heads = n.M / std::max<int64_t>(head_parts, 1), level_count = n.L / std::max<int64_t>(level_parts, 1);
  at::parallel_for(0, n.B * head_parts * level_parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> unused(4 * n.D);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t l = part % level_parts * level_count, m = part / level_parts % head_parts * heads;
      kernel(
          args, levels.table(), zeros.data(), unused.data(), part / level_parts / head_parts, m, m + heads, l,
          l + level_count);
    }
  });
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
