// CPU implementation of detrx::ms_deform_attn and detrx::ms_deform_attn_fused: threading and the choice of instruction
// set. float16 and bfloat16 are read and written as they are and computed in float32.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../compute_type.h"
#include "../../cpu/huge_pages.h"
#include "../../cpu/isa.h"
#include "../../reduced_float.h"
#include "../bilinear.h"
#include "../ms_deform_attn.h"
#include "../operators.h"
#include "../sampling.h"

#define DETRX_INLINE inline __attribute__((always_inline))

namespace detrx {
namespace {
// Of the level that each of a query's L * P points samples: height, width, first token, and the two scales of
// offsets, x and y in turn.
template <typename C>
struct LevelTable {
  const int32_t* height;
  const int32_t* width;
  const int32_t* start;
  const C* scale_xy;
};

// Memory of one thread. Arrays over the L * P points of a query and head, x and y in turn where they are twice as long.
template <typename T, typename C>
struct Workspace {
  const T* zeros;     // (D,), what corners outside the map read
  C* unused;          // (4, D), where they add their gradient
  C* output;          // (D,), or its gradient
  C* centres;         // of the query's reference, spread over the points
  C* extents;
  C* locations;       // of all heads
  C* weights;         // of all heads, padded(L * P) for each
  C* grad_locations;
  C* grad_weights;
};

// Queries first + y * stride + x of an image, for x < width and y < height.
struct QueryTile {
  int64_t first, width, height, stride;
};

// The softmax works on whole vectors, of at most 16 elements.
DETRX_INLINE int64_t padded(int64_t count) {
  return (count + 15) / 16 * 16;
}

}  // namespace

#define DETRX_TARGET
namespace isa_default {
namespace {
constexpr int kVectorBytes = 16;
#include "kernel.inl"
}  // namespace
}  // namespace isa_default
#undef DETRX_TARGET

#if defined(__x86_64__)
#define DETRX_TARGET __attribute__((target("avx2,fma,f16c")))
#define DETRX_F16C
namespace isa_avx2 {
namespace {
constexpr int kVectorBytes = 32;
#include "kernel.inl"
}  // namespace
}  // namespace isa_avx2
#undef DETRX_TARGET
#undef DETRX_F16C

#define DETRX_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")))
#define DETRX_F16C
namespace isa_avx512 {
namespace {
constexpr int kVectorBytes = 64;
#include "kernel.inl"
}  // namespace
}  // namespace isa_avx512
#undef DETRX_TARGET
#undef DETRX_F16C
#endif

namespace {

#if defined(__x86_64__)
#define DETRX_SELECT_ISA(...)                                              \
  (cpu_isa() == CpuIsa::Avx512 ? &isa_avx512::__VA_ARGS__                  \
                               : cpu_isa() == CpuIsa::Avx2 ? &isa_avx2::__VA_ARGS__ : &isa_default::__VA_ARGS__)
#else
#define DETRX_SELECT_ISA(...) (&isa_default::__VA_ARGS__)
#endif

template <typename C>
class LevelTableStorage {
 public:
  LevelTableStorage(const DeformAttnSizes& n, const int64_t* spatial_shapes, const int64_t* level_start_index) {
    for (int64_t i = 0; i < n.L * n.P; ++i) {
      const int64_t height = spatial_shapes[2 * (i / n.P)], width = spatial_shapes[2 * (i / n.P) + 1];
      heights_.push_back(static_cast<int32_t>(height));
      widths_.push_back(static_cast<int32_t>(width));
      starts_.push_back(static_cast<int32_t>(level_start_index[i / n.P]));
      scales_xy_.push_back(point_scale<C>(width));
      scales_xy_.push_back(point_scale<C>(height));
    }
  }
  LevelTable<C> table() const {
    return {heights_.data(), widths_.data(), starts_.data(), scales_xy_.data()};
  }

 private:
  std::vector<int32_t> heights_, widths_, starts_;
  std::vector<C> scales_xy_;
};

template <typename T, typename C>
class WorkspaceStorage {
 public:
  explicit WorkspaceStorage(const DeformAttnSizes& n) : zeros_(n.D) {
    const int64_t points = padded(n.L * n.P), all_points = n.M * points;
    numbers_.resize(5 * n.D + 7 * points + 3 * all_points);
    C* next = numbers_.data();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    workspace_ = {zeros_.data(),        take(4 * n.D),    take(n.D),        take(2 * points), take(2 * points),
                  take(2 * all_points), take(all_points), take(2 * points), take(points)};
  }
  const Workspace<T, C>& get() const {
    return workspace_;
  }

 private:
  std::vector<T> zeros_;
  std::vector<C> numbers_;
  Workspace<T, C> workspace_;
};

// Queries that are worth a thread.
int64_t grain(const DeformAttnSizes& n) {
  return 32768 / std::max<int64_t>(n.M * n.L * n.P * n.D, 1) + 1;
}

// The order in which an image's queries are processed. Where there are as many as tokens, each likely samples around
// its own place: those of a square share more of what they read, while it is in the cache, than those of a row.
std::vector<QueryTile> query_tiles(const DeformAttnSizes& n, const int64_t* spatial_shapes) {
  std::vector<QueryTile> tiles;
  if (n.Q != n.S) {
    const int64_t chunk = grain(n);
    for (int64_t first = 0; first < n.Q; first += chunk) {
      tiles.push_back({first, std::min(chunk, n.Q - first), 1, 0});
    }
    return tiles;
  }
  constexpr int64_t side = 8;
  int64_t start = 0;
  for (int64_t l = 0; l < n.L; ++l) {
    const int64_t height = spatial_shapes[2 * l], width = spatial_shapes[2 * l + 1];
    for (int64_t y = 0; y < height; y += side) {
      for (int64_t x = 0; x < width; x += side) {
        tiles.push_back({start + y * width + x, std::min(side, width - x), std::min(side, height - y), width});
      }
    }
    start += height * width;
  }
  return tiles;
}

template <typename T, typename C>
void forward(const DeformAttnInputs<T, C>& inputs, T* output) {
  const DeformAttnSizes& n = inputs.sizes;
  const LevelTableStorage<C> levels(n, inputs.spatial_shapes, inputs.level_start_index);
  const std::vector<QueryTile> tiles = query_tiles(n, inputs.spatial_shapes);
  const auto kernel = DETRX_SELECT_ISA(forward_queries<T, C>);
  // Threads take tile after tile, so that none waits for one that shares its core with something else.
  const int64_t per_image = tiles.size(), count = n.B * per_image;
  const int64_t workers = std::min<int64_t>(at::get_num_threads(), count);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const WorkspaceStorage<T, C> work(n);
    for (int64_t i = next++; i < count; i = next++) {
      kernel(inputs, output, levels.table(), work.get(), i / per_image, tiles[i % per_image]);
    }
  });
}

// Every element of grad_value belongs to one image, head and level. Threads share the work by these, so that they never
// collide, and every element sums its terms in the same order whatever the number of threads. Few large parts are
// better than many: a part reads the points of all queries.
template <typename T, typename C>
void backward(const DeformAttnInputs<T, C>& inputs, const DeformAttnGradients<T, C>& gradients) {
  const DeformAttnSizes& n = inputs.sizes;
  const LevelTableStorage<C> levels(n, inputs.spatial_shapes, inputs.level_start_index);
  const int64_t threads = at::get_num_threads();
  const auto balanced = [threads](int64_t parts) { return parts % threads == 0 || parts >= 4 * threads; };
  int64_t head_parts = 1;
  while (head_parts < n.M && !(n.M % head_parts == 0 && balanced(n.B * head_parts))) {
    ++head_parts;
  }
  const int64_t level_parts = balanced(n.B * head_parts) ? 1 : n.L;
  const int64_t heads = n.M / std::max<int64_t>(head_parts, 1), level_count = n.L / std::max<int64_t>(level_parts, 1);
  // The gradients of logits take all levels of a query: in a second pass, where threads share the levels.
  const bool two_passes = inputs.reference && level_parts > 1;
  std::vector<C> grad_weights(two_passes ? n.B * n.Q * n.M * n.L * n.P : 0);
  const std::vector<QueryTile> tiles = query_tiles(n, inputs.spatial_shapes);
  const auto kernel = DETRX_SELECT_ISA(backward_queries<T, C>);
  at::parallel_for(0, n.B * head_parts * level_parts, 1, [&](int64_t begin, int64_t end) {
    const WorkspaceStorage<T, C> work(n);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t l = part % level_parts * level_count, m = part / level_parts % head_parts * heads;
      for (const QueryTile& tile : tiles) {
        kernel(
            inputs, gradients, two_passes ? grad_weights.data() : nullptr, levels.table(), work.get(),
            part / level_parts / head_parts, tile, m, m + heads, l, l + level_count);
      }
    }
  });
  if (two_passes) {
    const auto softmax_kernel = DETRX_SELECT_ISA(softmax_backward_queries<T, C>);
    at::parallel_for(0, n.B * n.Q, grain(n), [&](int64_t begin, int64_t end) {
      const WorkspaceStorage<T, C> work(n);
      softmax_kernel(inputs, grad_weights.data(), gradients.grad_weights, work.get(), begin, end);
    });
  }
}

// The kernels' own types for those of torch.
template <typename T>
struct KernelType {
  typedef T type;
};
template <>
struct KernelType<at::Half> {
  typedef Float16 type;
};
template <>
struct KernelType<at::BFloat16> {
  typedef BFloat16 type;
};

// Contiguous arguments of the types that the kernels take.
class Prepared {
 public:
  Prepared(const DeformAttnArguments& arguments, const DeformAttnSizes& sizes)
      : sizes_(sizes),
        value_(arguments.value.contiguous()),
        spatial_shapes_(arguments.spatial_shapes.to(at::kLong).contiguous()),
        level_start_index_(arguments.level_start_index.to(at::kLong).contiguous()),
        points_(arguments.points.contiguous()),
        weights_(arguments.weights.contiguous()) {
    if (arguments.reference) {
      reference_ = arguments.reference->to(compute_type(value_)).contiguous();
    }
  }
  template <typename T>
  DeformAttnInputs<T, Compute<T>> inputs() const {
    typedef Compute<T> C;
    return {sizes_,
            static_cast<const T*>(value_.const_data_ptr()),
            spatial_shapes_.const_data_ptr<int64_t>(),
            level_start_index_.const_data_ptr<int64_t>(),
            static_cast<const T*>(points_.const_data_ptr()),
            static_cast<const T*>(weights_.const_data_ptr()),
            reference_.defined() ? reference_.const_data_ptr<C>() : nullptr,
            reference_.defined() ? static_cast<int>(reference_.size(3)) : 0};
  }

 private:
  DeformAttnSizes sizes_;
  at::Tensor value_, spatial_shapes_, level_start_index_, points_, weights_, reference_;
};

at::Tensor run_forward(const DeformAttnArguments& arguments) {
  const DeformAttnSizes n = check_arguments(arguments);
  const at::Tensor& value = arguments.value;
  const Prepared prepared(arguments, n);
  const at::Tensor output = in_huge_pages(at::empty({n.B, n.Q, n.M * n.D}, value.options()));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    typedef KernelType<scalar_t>::type T;
    forward(prepared.inputs<T>(), static_cast<T*>(output.mutable_data_ptr()));
  });
  return output;
}

// Gradients of value, points, weights and, where it is asked for, the reference.
DeformAttnGradientTensors run_backward(
    const DeformAttnArguments& arguments, const at::Tensor& grad_output, bool reference_needs_grad) {
  const DeformAttnSizes n = check_arguments(arguments);
  check_grad_output(arguments, n, grad_output);
  const at::Tensor& value = arguments.value;
  const Prepared prepared(arguments, n);
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor grad_value =
      in_huge_pages(at::empty(value.sizes(), value.options().dtype(compute_type(value)))).zero_();
  const at::Tensor grad_points = in_huge_pages(at::empty(arguments.points.sizes(), value.options()));
  const at::Tensor grad_weights = in_huge_pages(at::empty(arguments.weights.sizes(), value.options()));
  at::Tensor grad_reference;
  if (reference_needs_grad) {
    const at::Tensor& reference = *arguments.reference;
    grad_reference = at::zeros({n.B, n.Q, n.M, n.L, reference.size(3)}, grad_value.options());
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
    typedef KernelType<scalar_t>::type T;
    typedef Compute<T> C;
    backward(
        prepared.inputs<T>(),
        DeformAttnGradients<T, C>{
            static_cast<const T*>(grad.const_data_ptr()), grad_value.mutable_data_ptr<C>(),
            static_cast<T*>(grad_points.mutable_data_ptr()), static_cast<T*>(grad_weights.mutable_data_ptr()),
            reference_needs_grad ? grad_reference.mutable_data_ptr<C>() : nullptr});
  });
  if (reference_needs_grad) {
    grad_reference = grad_reference.sum(2).to(arguments.reference->scalar_type());
  } else if (arguments.reference) {
    grad_reference = at::empty({0}, arguments.reference->options());
  }
  return {grad_value.to(value.scalar_type()), grad_points, grad_weights, grad_reference};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  detrx::DeformAttnOperators<&detrx::run_forward, &detrx::run_backward>::register_in(m);
}
