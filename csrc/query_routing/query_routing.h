// The operators of query routing: what those of CPU and CUDA share around their kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "row_copy.h"

namespace detrx {

// B images of N queries, K packed slots each
struct RouteSizes {
  int64_t B, N, K;
};

// The checks throw an error that names the argument and the shapes that do not fit together.
void check_query_route(const at::Tensor& keep, std::optional<int64_t> capacity);

// One call of query_gather, query_scatter, query_unpack or query_clear: its output tensors, and the row copies that
// fill them. Keeps the inputs alive.
struct RoutedCall {
  const char* op;
  RouteSizes sizes;
  at::Tensor index, valid;  // (B, K), contiguous
  std::vector<at::Tensor> inputs, outputs;
  std::vector<RowCopy> copies;  // of the outputs that are not empty
};

RoutedCall plan_gather(at::TensorList x, const at::Tensor& index, const at::Tensor& valid);
RoutedCall plan_scatter(
    at::TensorList base, at::TensorList packed, const at::Tensor& index, const at::Tensor& valid);
RoutedCall plan_unpack(at::TensorList packed, const at::Tensor& index, const at::Tensor& valid, int64_t queries);
RoutedCall plan_clear(at::TensorList x, const at::Tensor& index, const at::Tensor& valid);

// The operators of one device that move rows, made of the two ways to fill outputs: the slots of a route from its
// queries, and all queries, those of a route from its slots.
template <
    std::vector<at::Tensor> (*kGather)(const RoutedCall&), std::vector<at::Tensor> (*kMerge)(const RoutedCall&)>
struct RowOperators {
  static std::vector<at::Tensor> gather(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
    return kGather(plan_gather(x, index, valid));
  }

  static std::vector<at::Tensor> scatter(
      at::TensorList base, at::TensorList packed, const at::Tensor& index, const at::Tensor& valid) {
    return kMerge(plan_scatter(base, packed, index, valid));
  }

  static std::vector<at::Tensor> unpack(
      at::TensorList packed, const at::Tensor& index, const at::Tensor& valid, int64_t queries) {
    return kMerge(plan_unpack(packed, index, valid, queries));
  }

  static std::vector<at::Tensor> clear(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
    return kMerge(plan_clear(x, index, valid));
  }

  static void register_in(torch::Library& library) {
    library.impl("query_gather", &gather);
    library.impl("query_scatter", &scatter);
    library.impl("query_unpack", &unpack);
    library.impl("query_clear", &clear);
  }
};

}  // namespace detrx
