// Schemas and argument checks of query routing.

#include "query_routing.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "../checks.h"

namespace detrx {
namespace {

// The kernels count the rows of a tensor in 32 bits.
void check_row_count(const char* op, int64_t images, int64_t rows, const char* what, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(
      rows <= std::numeric_limits<int32_t>::max() / std::max<int64_t>(images, 1),
      op, ": ", images, " images of ", rows, " ", what, " are more than 2^31 - 1, for a route of shape ",
      tensor.sizes());
}

void check_route(const char* op, const at::Tensor& index, const at::Tensor& valid) {
  check_rank(op, "index", index, 2, "(B, K)");
  check_shape(op, "valid", valid, index.sizes(), "index", index);
  check_dtype(op, "index", index, at::kLong, "int64");
  check_dtype(op, "valid", valid, at::kBool, "bool");
  check_same_device(op, "valid", valid, "index", index);
}

std::string element(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

void check_rows(
    const char* op, const std::string& name, const at::Tensor& x, int64_t rows, const at::Tensor& index) {
  TORCH_CHECK_VALUE(
      x.dim() >= 2 && x.size(0) == index.size(0) && x.size(1) == rows,
      op, ": ", name, " has shape ", x.sizes(), ", expected (", index.size(0), ", ", rows,
      ", ...) to fit index of shape ", index.sizes());
  check_same_device(op, name, x, "index", index);
}

// Both have rows of the same shape and dtype.
void check_same_rows(
    const char* op, const std::string& name, const at::Tensor& x, const std::string& other_name,
    const at::Tensor& other) {
  TORCH_CHECK_VALUE(
      x.sizes().slice(2) == other.sizes().slice(2),
      op, ": ", name, " has shape ", x.sizes(), ", which does not fit ", other_name, " of shape ", other.sizes());
  check_same_dtype(op, name, x, other_name, other);
}

int64_t row_numel(const at::Tensor& x) {
  int64_t numel = 1;
  for (const int64_t size : x.sizes().slice(2)) {
    numel *= size;
  }
  return numel;
}

// `x`, or a copy of it whose rows are contiguous.
at::Tensor with_whole_rows(const at::Tensor& x) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return x.contiguous();
    }
    expected *= x.size(d);
  }
  return x;
}

Rows rows_of(RoutedCall& call, const at::Tensor& x) {
  const at::Tensor& whole = call.inputs.emplace_back(with_whole_rows(x));
  const int64_t size = whole.element_size();
  return {static_cast<const char*>(whole.const_data_ptr()), whole.stride(0) * size, whole.stride(1) * size};
}

// Adds the output (B, rows, ...) shaped and typed like `like`, and how to fill it. Undefined inputs are zeros.
void add_output(
    RoutedCall& call, const at::Tensor& like, int64_t rows, const at::Tensor& queries, const at::Tensor& packed) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape[1] = rows;
  const at::Tensor& output = call.outputs.emplace_back(at::empty(shape, like.options()));
  if (output.numel() > 0) {
    RowCopy copy{};
    if (queries.defined() && queries.numel() > 0) {
      copy.queries = rows_of(call, queries);
    }
    if (packed.defined() && packed.numel() > 0) {
      copy.packed = rows_of(call, packed);
    }
    copy.output = static_cast<char*>(output.mutable_data_ptr());
    copy.bytes = row_numel(like) * like.element_size();
    call.copies.push_back(copy);
  }
}

RoutedCall plan(const char* op, const at::Tensor& index, const at::Tensor& valid, int64_t queries) {
  check_route(op, index, valid);
  check_row_count(op, index.size(0), queries, "queries", index);
  check_row_count(op, index.size(0), index.size(1), "slots", index);
  RoutedCall call;
  call.op = op;
  call.sizes = {index.size(0), queries, index.size(1)};
  call.index = index.contiguous();
  call.valid = valid.contiguous();
  return call;
}

// All tensors of a call have the same number of queries; it is that of the first.
int64_t queries_of(const char* op, const char* name, at::TensorList x) {
  TORCH_CHECK_VALUE(!x.empty(), op, ": ", name, " has no tensors");
  TORCH_CHECK_VALUE(x[0].dim() >= 2, op, ": ", name, "[0] has shape ", x[0].sizes(), ", expected (B, N, ...)");
  return x[0].size(1);
}

// Outputs of K or N rows for each image, filled from the queries of `x` alone.
RoutedCall plan_from_queries(
    const char* op, at::TensorList x, const at::Tensor& index, const at::Tensor& valid, int64_t RouteSizes::*rows) {
  RoutedCall call = plan(op, index, valid, queries_of(op, "x", x));
  for (size_t i = 0; i < x.size(); ++i) {
    check_rows(op, element("x", i), x[i], call.sizes.N, index);
    add_output(call, x[i], call.sizes.*rows, x[i], {});
  }
  return call;
}

}  // namespace

void check_query_route(const at::Tensor& keep, std::optional<int64_t> capacity) {
  constexpr auto op = "query_route";
  check_rank(op, "keep", keep, 2, "(B, N)");
  check_dtype(op, "keep", keep, at::kBool, "bool");
  TORCH_CHECK_VALUE(
      !capacity || (*capacity >= 0 && *capacity <= keep.size(1)),
      op, ": capacity is ", *capacity, ", expected 0 to N for keep of shape ", keep.sizes());
  check_row_count(op, keep.size(0), keep.size(1), "queries", keep);
}

RoutedCall plan_gather(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  return plan_from_queries("query_gather", x, index, valid, &RouteSizes::K);
}

RoutedCall plan_scatter(
    at::TensorList base, at::TensorList packed, const at::Tensor& index, const at::Tensor& valid) {
  constexpr auto op = "query_scatter";
  RoutedCall call = plan(op, index, valid, queries_of(op, "base", base));
  TORCH_CHECK_VALUE(
      packed.size() == base.size(),
      op, ": packed has ", packed.size(), " tensors, base has ", base.size());
  for (size_t i = 0; i < base.size(); ++i) {
    check_rows(op, element("base", i), base[i], call.sizes.N, index);
    check_rows(op, element("packed", i), packed[i], call.sizes.K, index);
    check_same_rows(op, element("packed", i), packed[i], element("base", i), base[i]);
    add_output(call, base[i], call.sizes.N, base[i], packed[i]);
  }
  return call;
}

RoutedCall plan_unpack(at::TensorList packed, const at::Tensor& index, const at::Tensor& valid, int64_t queries) {
  constexpr auto op = "query_unpack";
  TORCH_CHECK_VALUE(queries >= 0, op, ": queries is ", queries, ", expected N >= 0");
  RoutedCall call = plan(op, index, valid, queries);
  for (size_t i = 0; i < packed.size(); ++i) {
    check_rows(op, element("packed", i), packed[i], call.sizes.K, index);
    add_output(call, packed[i], queries, {}, packed[i]);
  }
  return call;
}

RoutedCall plan_clear(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  return plan_from_queries("query_clear", x, index, valid, &RouteSizes::N);
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("query_route(Tensor keep, SymInt? capacity=None) -> (Tensor, Tensor)");
  m.def("query_gather(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]");
  m.def("query_scatter(Tensor[] base, Tensor[] packed, Tensor index, Tensor valid) -> Tensor[]");
  m.def("query_unpack(Tensor[] packed, Tensor index, Tensor valid, SymInt queries) -> Tensor[]");
  m.def("query_clear(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]");
}
