// CPU implementation of detrx::moe_route, moe_dispatch and moe_combine. Every result is the same for any number of
// threads: no sum is shared between them.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../cpu_dispatch.h"
#include "moe.h"
#include "routing.h"

#define DETRX_INLINE inline __attribute__((always_inline))

namespace detrx {

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
auto combine_kernel() {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return &isa_avx512::combine_range<T>;
    case CpuIsa::Avx2:
      return &isa_avx2::combine_range<T>;
#endif
    default:
      return &isa_default::combine_range<T>;
  }
}

template <typename T>
auto combine_backward_kernel() {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::Avx512:
      return &isa_avx512::combine_backward_range<T>;
    case CpuIsa::Avx2:
      return &isa_avx2::combine_backward_range<T>;
#endif
    default:
      return &isa_default::combine_backward_range<T>;
  }
}

// Elements that are worth a thread.
constexpr int64_t kGrain = 32768;

int64_t grain(int64_t per_item) {
  return std::max<int64_t>(kGrain / std::max<int64_t>(per_item, 1), 1);
}

// float16 and bfloat16 are computed in float32.
at::ScalarType compute_type(const at::Tensor& tensor) {
  return at::isReducedFloatingType(tensor.scalar_type()) ? at::kFloat : tensor.scalar_type();
}

// The k first of the token's E candidates, best first, by insertion.
template <typename T>
void choose(const T* logits, int experts, int k, Candidate<T>* chosen) {
  int count = 0;
  for (int e = 0; e < experts; ++e) {
    const Candidate<T> candidate{logits[e], e};
    if (count == k && !ranks_before(candidate, chosen[k - 1])) {
      continue;
    }
    int j = count < k ? count++ : k - 1;
    for (; j > 0 && ranks_before(candidate, chosen[j - 1]); --j) {
      chosen[j] = chosen[j - 1];
    }
    chosen[j] = candidate;
  }
}

template <typename T>
void route_range(
    const T* logits, int experts, int k, int64_t begin, int64_t end, T* weights, int64_t* chosen_experts) {
  Candidate<T> chosen[kMaxTopK];
  T values[kMaxTopK];
  for (int64_t t = begin; t < end; ++t) {
    choose(logits + t * experts, experts, k, chosen);
    for (int j = 0; j < k; ++j) {
      values[j] = chosen[j].logit;
      chosen_experts[t * k + j] = chosen[j].expert;
    }
    chosen_weights(values, k, weights + t * k);
  }
}

// A stable counting sort of the assignments by expert, in chunks: count, sum up, place.
void sort_by_expert(const int64_t* experts, int64_t assignments, int64_t num_experts, int64_t* counts, int64_t* order) {
  constexpr int64_t kChunk = 8192;
  const int64_t chunks = (assignments + kChunk - 1) / kChunk;
  std::vector<int64_t> next(chunks * num_experts);  // (chunks, E): first the count, then the next free place
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, assignments); ++i) {
      ++next[i / kChunk * num_experts + experts[i]];
    }
  });
  int64_t place = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t first = place;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t count = next[chunk * num_experts + e];
      next[chunk * num_experts + e] = place;
      place += count;
    }
    counts[e] = place - first;
  }
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, assignments); ++i) {
      order[next[i / kChunk * num_experts + experts[i]]++] = i;
    }
  });
}

// place[order[i]] = i
at::Tensor invert(const char* op, const at::Tensor& order) {
  const int64_t count = order.numel();
  at::Tensor inverse = at::full({count}, -1, order.options());
  const int64_t* source = order.const_data_ptr<int64_t>();
  int64_t* place = inverse.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(
        source[i] >= 0 && source[i] < count && place[source[i]] < 0,
        op, ": order is not a permutation of 0 to ", count - 1, ": order[", i, "] is ", source[i]);
    place[source[i]] = i;
  }
  return inverse;
}

void check_range(const char* op, const at::Tensor& order) {
  const int64_t* source = order.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < order.numel(); ++i) {
    TORCH_CHECK_VALUE(
        source[i] >= 0 && source[i] < order.numel(),
        op, ": order is not a permutation of 0 to ", order.numel() - 1, ": order[", i, "] is ", source[i]);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> moe_route_cpu(const at::Tensor& logits, int64_t k) {
  check_moe_route(logits, k);
  const int64_t tokens = logits.size(0), num_experts = logits.size(1);
  const at::Tensor l = logits.to(compute_type(logits)).contiguous();
  at::Tensor weights = at::empty({tokens, k}, l.options());
  at::Tensor experts = at::empty({tokens, k}, l.options().dtype(at::kLong));
  at::Tensor counts = at::empty({num_experts}, experts.options());
  at::Tensor order = at::empty({tokens * k}, experts.options());
  AT_DISPATCH_FLOATING_TYPES(l.scalar_type(), "moe_route", [&] {
    const scalar_t* source = l.const_data_ptr<scalar_t>();
    scalar_t* w = weights.mutable_data_ptr<scalar_t>();
    int64_t* e = experts.mutable_data_ptr<int64_t>();
    at::parallel_for(0, tokens, grain(4 * num_experts), [&](int64_t begin, int64_t end) {
      route_range(source, static_cast<int>(num_experts), static_cast<int>(k), begin, end, w, e);
    });
  });
  sort_by_expert(
      experts.const_data_ptr<int64_t>(), tokens * k, num_experts, counts.mutable_data_ptr<int64_t>(),
      order.mutable_data_ptr<int64_t>());
  return {weights.to(logits.scalar_type()), experts, counts, order};
}

at::Tensor moe_route_backward_cpu(
    const at::Tensor& grad_weights, const at::Tensor& logits, const at::Tensor& experts) {
  check_moe_route_backward(grad_weights, logits, experts);
  const int64_t tokens = logits.size(0), num_experts = logits.size(1), k = experts.size(1);
  const at::Tensor grad = grad_weights.to(compute_type(logits)).contiguous();
  const at::Tensor l = logits.to(compute_type(logits)).contiguous();
  const at::Tensor chosen = experts.contiguous();
  at::Tensor grad_logits = at::zeros_like(l);
  AT_DISPATCH_FLOATING_TYPES(l.scalar_type(), "moe_route_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* source = l.const_data_ptr<scalar_t>();
    const int64_t* e = chosen.const_data_ptr<int64_t>();
    scalar_t* target = grad_logits.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, tokens, grain(16 * k), [&](int64_t begin, int64_t end) {
      scalar_t values[kMaxTopK], weights[kMaxTopK], gradient[kMaxTopK];
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t expert = e[t * k + j];
          TORCH_CHECK_VALUE(
              expert >= 0 && expert < num_experts, "moe_route_backward: experts[", t, ", ", j, "] is ", expert,
              ", expected 0 to ", num_experts - 1);
          values[j] = source[t * num_experts + expert];
        }
        chosen_weights(values, static_cast<int>(k), weights);
        chosen_gradient(weights, g + t * k, static_cast<int>(k), gradient);
        for (int64_t j = 0; j < k; ++j) {
          target[t * num_experts + e[t * k + j]] = gradient[j];
        }
      }
    });
  });
  return grad_logits.to(logits.scalar_type());
}

at::Tensor moe_dispatch_cpu(const at::Tensor& x, const at::Tensor& order, int64_t k) {
  check_moe_dispatch(x, order, k);
  const at::Tensor source = x.contiguous();
  const at::Tensor assignments = order.contiguous();
  check_range("moe_dispatch", assignments);
  at::Tensor output = at::empty({x.size(0) * k, x.size(1)}, source.options());
  const int64_t row = x.size(1) * x.element_size();
  if (row == 0) {
    return output;
  }
  const char* from = static_cast<const char*>(source.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());
  const int64_t* a = assignments.const_data_ptr<int64_t>();
  at::parallel_for(0, output.size(0), grain(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(to + i * row, from + a[i] / k * row, row);
    }
  });
  return output;
}

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor combine(const char* op, const at::Tensor& y, const at::Tensor* weights, const at::Tensor& order, int64_t k) {
  const int64_t tokens = y.size(0) / k, channels = y.size(1);
  const at::ScalarType type = compute_type(y);
  const at::Tensor rows = y.to(type).contiguous();
  const at::Tensor w = weights ? weights->to(type).contiguous() : at::Tensor();
  const at::Tensor place = invert(op, order.contiguous());
  at::Tensor output = at::empty({tokens, channels}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(type, "moe_combine", [&] {
    const MoeCombine<scalar_t> args{
        tokens, k, channels, rows.const_data_ptr<scalar_t>(), weights ? w.const_data_ptr<scalar_t>() : nullptr,
        place.const_data_ptr<int64_t>(), output.mutable_data_ptr<scalar_t>()};
    const auto kernel = combine_kernel<scalar_t>();
    at::parallel_for(0, tokens, grain(k * channels), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return output.to(y.scalar_type());
}

at::Tensor moe_dispatch_backward_cpu(const at::Tensor& grad_output, const at::Tensor& order, int64_t k) {
  check_moe_dispatch_backward(grad_output, order, k);
  return combine("moe_dispatch_backward", grad_output, nullptr, order, k);
}

at::Tensor moe_combine_cpu(const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order) {
  check_moe_combine(y, weights, order);
  return combine("moe_combine", y, &weights, order, weights.size(1));
}

std::tuple<at::Tensor, at::Tensor> moe_combine_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order) {
  check_moe_combine(y, weights, order);
  check_moe_combine_backward(grad_output, y, weights);
  const at::ScalarType type = compute_type(y);
  const at::Tensor grad = grad_output.to(type).contiguous();
  const at::Tensor rows = y.to(type).contiguous();
  const at::Tensor w = weights.to(type).contiguous();
  const at::Tensor assignments = order.contiguous();
  check_range("moe_combine_backward", assignments);
  at::Tensor grad_y = at::empty_like(rows);
  at::Tensor grad_weights = at::empty_like(w);
  const int64_t k = weights.size(1), channels = y.size(1);
  AT_DISPATCH_FLOATING_TYPES(type, "moe_combine_backward", [&] {
    const MoeCombineBackward<scalar_t> args{
        weights.size(0), k, channels, grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(),
        w.const_data_ptr<scalar_t>(), assignments.const_data_ptr<int64_t>(), grad_y.mutable_data_ptr<scalar_t>(),
        grad_weights.mutable_data_ptr<scalar_t>()};
    const auto kernel = combine_backward_kernel<scalar_t>();
    at::parallel_for(
        0, y.size(0), grain(channels), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return {grad_y.to(y.scalar_type()), grad_weights.to(y.scalar_type())};
}

}  // namespace
}  // namespace detrx

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_route", &detrx::moe_route_cpu);
  m.impl("moe_route_backward", &detrx::moe_route_backward_cpu);
  m.impl("moe_dispatch", &detrx::moe_dispatch_cpu);
  m.impl("moe_dispatch_backward", &detrx::moe_dispatch_backward_cpu);
  m.impl("moe_combine", &detrx::moe_combine_cpu);
  m.impl("moe_combine_backward", &detrx::moe_combine_backward_cpu);
}
