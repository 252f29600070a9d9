// Query routing: what the operators' CPU and CUDA sides share.
#pragma once

#include <ATen/core/Tensor.h>

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

}  // namespace detrx
