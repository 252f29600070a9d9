// CPU implementation of detrx::query_route.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "../query_routing.h"

namespace detrx::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor> route(const at::Tensor& keep, std::optional<int64_t> capacity) {
  check_query_route(keep, capacity);
  const at::Tensor mask = keep.contiguous();
  const bool* kept = mask.const_data_ptr<bool>();
  const int64_t images = mask.size(0), queries = mask.size(1);
  int64_t largest = 0;
  for (int64_t b = 0; b < images; ++b) {
    largest = std::max<int64_t>(largest, std::count(kept + b * queries, kept + (b + 1) * queries, true));
  }
  const int64_t slots = capacity.value_or(largest);
  TORCH_CHECK_VALUE(
      largest <= slots,
      "query_route: capacity is ", slots, ", but an image of keep of shape ", keep.sizes(), " keeps ", largest);
  at::Tensor index = at::empty({images, slots}, mask.options().dtype(at::kLong));
  at::Tensor valid = at::empty({images, slots}, mask.options());
  for (int64_t b = 0; b < images; ++b) {
    int64_t* row = index.mutable_data_ptr<int64_t>() + b * slots;
    int64_t count = 0;
    for (int64_t query = 0; query < queries; ++query) {
      if (kept[b * queries + query]) {
        row[count++] = query;
      }
    }
    std::fill(row + count, row + slots, 0);
    bool* flags = valid.mutable_data_ptr<bool>() + b * slots;
    std::fill(flags, flags + count, true);
    std::fill(flags + count, flags + slots, false);
  }
  return {index, valid};
}

}  // namespace
}  // namespace detrx::cpu

TORCH_LIBRARY_IMPL(detrx, CPU, m) {
  m.impl("query_route", &detrx::cpu::route);
}
