// CPU implementation of detrx::moe_dispatch and moe_combine. Every result is the same for any number of threads: no sum
// is shared between them.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <cstring>

#include "../../compute_type.h"
#include "../../cpu/isa.h"
#include "../moe.h"
#include "../routing.h"
#include "grain.h"

namespace detrx::cpu {

#define DETRX_TARGET
namespace isa_default {
namespace {
constexpr int kVectorBytes = 16;
#include "combine.inl"
}  // namespace
}  // namespace isa_default
#undef DETRX_TARGET

#if defined(__x86_64__)
#define DETRX_TARGET __attribute__((target("avx2,fma")))
namespace isa_avx2 {
namespace {
constexpr int kVectorBytes = 32;
#include "combine.inl"
}  // namespace
}  // namespace isa_avx2
#undef DETRX_TARGET

#define DETRX_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))
namespace isa_avx512 {
namespace {
constexpr int kVectorBytes = 64;
#include "combine.inl"
}  // namespace
}  // namespace isa_avx512
#undef DETRX_TARGET
#endif

namespace {

template <typename T>
auto combine_kernel() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::Avx512:
      return &isa_avx512::combine_range<T>;
    case Isa::Avx2:
      return &isa_avx2::combine_range<T>;
#endif
    default:
      return &isa_default::combine_range<T>;
  }
}

template <typename T>
auto combine_backward_kernel() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::Avx512:
      return &isa_avx512::combine_backward_range<T>;
    case Isa::Avx2:
      return &isa_avx2::combine_backward_range<T>;
#endif
    default:
      return &isa_default::combine_backward_range<T>;
  }
}

// `order` and `place`, contiguous.
MoePlaces places_of(const at::Tensor& order, const at::Tensor& place) {
  return {
      place.size(0), static_cast<int>(place.size(1)), order.const_data_ptr<int64_t>(),
      place.const_data_ptr<int64_t>()};
}

// Where order[place[i]] is i for every assignment i, no row is there twice, and none is missing.
void check_inverse(const char* op, const MoePlaces& places) {
  const int64_t count = places.tokens * places.k;
  at::parallel_for(0, count, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = places.place[i];
      TORCH_CHECK_VALUE(
          row >= 0 && row < count,
          op, ": place[", i / places.k, ", ", i % places.k, "] is ", row, ", expected 0 to ", count - 1);
      TORCH_CHECK_VALUE(
          places.order[row] == i,
          op, ": order and place are no inverse permutations: place[", i / places.k, ", ", i % places.k, "] is ", row,
          ", order[", row, "] is ", places.order[row], ", expected ", i);
    }
  });
}

at::Tensor moe_dispatch_cpu(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch(x, order, place);
  const at::Tensor source = x.contiguous(), o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  check_inverse("moe_dispatch", places);
  at::Tensor output = at::empty({place.numel(), x.size(1)}, source.options());
  const int64_t row = x.size(1) * x.element_size();
  if (row == 0) {
    return output;
  }
  const char* from = static_cast<const char*>(source.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());
  at::parallel_for(0, places.tokens, grain(places.k * x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < places.k; ++j) {
        std::memcpy(to + places.place[t * places.k + j] * row, from + t * row, row);
      }
    }
  });
  return output;
}

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor combine(
    const char* op, const at::Tensor& y, const at::Tensor* weights, const at::Tensor& order, const at::Tensor& place) {
  const at::ScalarType type = compute_type(y);
  const at::Tensor rows = y.to(type).contiguous();
  const at::Tensor w = weights ? weights->to(type).contiguous() : at::Tensor();
  const at::Tensor o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  check_inverse(op, places);
  at::Tensor output = at::empty({places.tokens, y.size(1)}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(type, "moe_combine", [&] {
    const MoeCombine<scalar_t> args{
        places, y.size(1), rows.const_data_ptr<scalar_t>(), weights ? w.const_data_ptr<scalar_t>() : nullptr,
        output.mutable_data_ptr<scalar_t>()};
    const auto kernel = combine_kernel<scalar_t>();
    at::parallel_for(0, places.tokens, grain(places.k * y.size(1)), [&](int64_t begin, int64_t end) {
      kernel(args, begin, end);
    });
  });
  return output.to(y.scalar_type());
}

at::Tensor moe_dispatch_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch_backward(grad_output, order, place);
  return combine("moe_dispatch_backward", grad_output, nullptr, order, place);
}

at::Tensor moe_combine_cpu(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  return combine("moe_combine", y, &weights, order, place);
}

std::tuple<at::Tensor, at::Tensor> moe_combine_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order,
    const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  check_moe_combine_backward(grad_output, y, weights);
  const at::ScalarType type = compute_type(y);
  const at::Tensor grad = grad_output.to(type).contiguous();
  const at::Tensor rows = y.to(type).contiguous();
  const at::Tensor w = weights.to(type).contiguous();
  const at::Tensor o = order.contiguous(), p = place.contiguous();
  const MoePlaces places = places_of(o, p);
  check_inverse("moe_combine_backward", places);
  at::Tensor grad_y = at::empty_like(rows);
  at::Tensor grad_weights = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES(type, "moe_combine_backward", [&] {
    const MoeCombineBackward<scalar_t> args{
        places, y.size(1), grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(),
        w.const_data_ptr<scalar_t>(), grad_y.mutable_data_ptr<scalar_t>(),
        grad_weights.mutable_data_ptr<scalar_t>()};
    const auto kernel = combine_backward_kernel<scalar_t>();
    at::parallel_for(0, places.tokens, grain(places.k * y.size(1)), [&](int64_t begin, int64_t end) {
      kernel(args, begin, end);
    });
  });
  return {grad_y.to(y.scalar_type()), grad_weights.to(y.scalar_type())};
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_dispatch", &detrx::cpu::moe_dispatch_cpu);
  m.impl("moe_dispatch_backward", &detrx::cpu::moe_dispatch_backward_cpu);
  m.impl("moe_combine", &detrx::cpu::moe_combine_cpu);
  m.impl("moe_combine_backward", &detrx::cpu::moe_combine_backward_cpu);
}
