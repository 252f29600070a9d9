// CPU implementation of detrx::moe_dispatch: rows are copied whole, shared among threads by token.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdint>
#include <cstring>

#include "../moe.h"
#include "grain.h"
#include "places.h"

namespace detrx::cpu {
namespace {

at::Tensor dispatch(const at::Tensor& x, const at::Tensor& order, const at::Tensor& place) {
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

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("moe_dispatch", &detrx::cpu::dispatch);
}
