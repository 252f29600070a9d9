// CPU implementation of detrx::moe_combine, and of the backward pass of moe_dispatch, which is a combine without
// weights. Every result is the same for any number of threads: no sum is shared between them.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

#include "../../compute_type.h"
#include "../moe.h"
#include "../routing.h"
#include "grain.h"
#include "places.h"

#define DETRX_ISA_FILE "../moe/cpu/combine.inl"
#include "../../cpu/foreach_isa.inl"

namespace detrx::cpu {
namespace {

// The output of moe_combine; without weights, the sum over the token's rows.
at::Tensor sum_rows(
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
    const auto kernel = DETRX_SELECT_ISA(combine_range<scalar_t>);
    at::parallel_for(0, places.tokens, grain(places.k * y.size(1)), [&](int64_t begin, int64_t end) {
      kernel(args, begin, end);
    });
  });
  return output.to(y.scalar_type());
}

at::Tensor dispatch_backward(const at::Tensor& grad_output, const at::Tensor& order, const at::Tensor& place) {
  check_moe_dispatch_backward(grad_output, order, place);
  return sum_rows("moe_dispatch_backward", grad_output, nullptr, order, place);
}

at::Tensor combine(
    const at::Tensor& y, const at::Tensor& weights, const at::Tensor& order, const at::Tensor& place) {
  check_moe_combine(y, weights, order, place);
  return sum_rows("moe_combine", y, &weights, order, place);
}

std::tuple<at::Tensor, at::Tensor> combine_backward(
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
    const auto kernel = DETRX_SELECT_ISA(combine_backward_range<scalar_t>);
    at::parallel_for(0, places.tokens, grain(places.k * y.size(1)), [&](int64_t begin, int64_t end) {
      kernel(args, begin, end);
    });
  });
  return {grad_y.to(y.scalar_type()), grad_weights.to(y.scalar_type())};
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_dispatch_backward", &detrx::cpu::dispatch_backward);
  m.impl("moe_combine", &detrx::cpu::combine);
  m.impl("moe_combine_backward", &detrx::cpu::combine_backward);
}
