// Schemas and argument checks of query routing.

#include "query_routing.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace detrx {
namespace {

// The kernels count the rows of a tensor in 32 bits.
void check_count(const char* op, int64_t images, int64_t rows, const char* what, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(
      rows <= std::numeric_limits<int32_t>::max() / std::max<int64_t>(images, 1),
      op, ": ", images, " images of ", rows, " ", what, " are more than 2^31 - 1, for a route of shape ",
      tensor.sizes());
}

void check_route(const char* op, const at::Tensor& index, const at::Tensor& valid) {
  TORCH_CHECK_VALUE(index.dim() == 2, op, ": index has shape ", index.sizes(), ", expected (B, K)");
  TORCH_CHECK_VALUE(
      valid.sizes() == index.sizes(),
      op, ": valid has shape ", valid.sizes(), ", expected ", index.sizes(), " to fit index");
  TORCH_CHECK_TYPE(
      index.scalar_type() == at::kLong,
      op, ": index of shape ", index.sizes(), " has dtype ", index.scalar_type(), ", expected int64");
  TORCH_CHECK_TYPE(
      valid.scalar_type() == at::kBool,
      op, ": valid of shape ", valid.sizes(), " has dtype ", valid.scalar_type(), ", expected bool");
  TORCH_CHECK_VALUE(
      valid.device() == index.device(),
      op, ": valid of shape ", valid.sizes(), " is on ", valid.device(), ", index of shape ", index.sizes(), " on ",
      index.device());
}

void check_rows(
    const char* op, const char* name, size_t i, const at::Tensor& x, int64_t rows, const at::Tensor& index) {
  TORCH_CHECK_VALUE(
      x.dim() >= 2 && x.size(0) == index.size(0) && x.size(1) == rows,
      op, ": ", name, "[", i, "] has shape ", x.sizes(), ", expected (", index.size(0), ", ", rows,
      ", ...) to fit index of shape ", index.sizes());
  TORCH_CHECK_VALUE(
      x.device() == index.device(),
      op, ": ", name, "[", i, "] of shape ", x.sizes(), " is on ", x.device(), ", index of shape ", index.sizes(),
      " on ", index.device());
}

void check_like(
    const char* op, const char* name, size_t i, const at::Tensor& x, const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(
      x.sizes().slice(2) == other.sizes().slice(2),
      op, ": ", name, "[", i, "] has shape ", x.sizes(), ", which does not fit ", other_name, "[", i, "] of shape ",
      other.sizes());
  TORCH_CHECK_TYPE(
      x.scalar_type() == other.scalar_type(),
      op, ": ", name, "[", i, "] of shape ", x.sizes(), " has dtype ", x.scalar_type(), ", ", other_name, "[", i,
      "] of shape ", other.sizes(), " has ", other.scalar_type());
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
  check_count(op, index.size(0), queries, "queries", index);
  check_count(op, index.size(0), index.size(1), "slots", index);
  RoutedCall call;
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

}  // namespace

void check_query_route(const at::Tensor& keep, std::optional<int64_t> capacity) {
  TORCH_CHECK_VALUE(keep.dim() == 2, "query_route: keep has shape ", keep.sizes(), ", expected (B, N)");
  TORCH_CHECK_TYPE(
      keep.scalar_type() == at::kBool,
      "query_route: keep of shape ", keep.sizes(), " has dtype ", keep.scalar_type(), ", expected bool");
  TORCH_CHECK_VALUE(
      !capacity || (*capacity >= 0 && *capacity <= keep.size(1)),
      "query_route: capacity is ", *capacity, ", expected 0 to N for keep of shape ", keep.sizes());
  check_count("query_route", keep.size(0), keep.size(1), "queries", keep);
}

RoutedCall plan_gather(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  constexpr auto op = "query_gather";
  RoutedCall call = plan(op, index, valid, queries_of(op, "x", x));
  for (size_t i = 0; i < x.size(); ++i) {
    check_rows(op, "x", i, x[i], call.sizes.N, index);
    add_output(call, x[i], call.sizes.K, x[i], {});
  }
  return call;
}

RoutedCall plan_scatter(
    at::TensorList base, at::TensorList packed, const at::Tensor& index, const at::Tensor& valid) {
  constexpr auto op = "query_scatter";
  RoutedCall call = plan(op, index, valid, queries_of(op, "base", base));
  TORCH_CHECK_VALUE(
      packed.size() == base.size(),
      op, ": packed has ", packed.size(), " tensors, base has ", base.size());
  for (size_t i = 0; i < base.size(); ++i) {
    check_rows(op, "base", i, base[i], call.sizes.N, index);
    check_rows(op, "packed", i, packed[i], call.sizes.K, index);
    check_like(op, "packed", i, packed[i], "base", base[i]);
    add_output(call, base[i], call.sizes.N, base[i], packed[i]);
  }
  return call;
}

RoutedCall plan_unpack(at::TensorList packed, const at::Tensor& index, const at::Tensor& valid, int64_t queries) {
  constexpr auto op = "query_unpack";
  TORCH_CHECK_VALUE(queries >= 0, op, ": queries is ", queries, ", expected N >= 0");
  RoutedCall call = plan(op, index, valid, queries);
  for (size_t i = 0; i < packed.size(); ++i) {
    check_rows(op, "packed", i, packed[i], call.sizes.K, index);
    add_output(call, packed[i], queries, {}, packed[i]);
  }
  return call;
}

RoutedCall plan_clear(at::TensorList x, const at::Tensor& index, const at::Tensor& valid) {
  constexpr auto op = "query_clear";
  RoutedCall call = plan(op, index, valid, queries_of(op, "x", x));
  for (size_t i = 0; i < x.size(); ++i) {
    check_rows(op, "x", i, x[i], call.sizes.N, index);
    add_output(call, x[i], call.sizes.N, x[i], {});
  }
  return call;
}

}  // namespace detrx

TORCH_LIBRARY_FRAGMENT(detrx, m) {
  m.def("query_route(Tensor keep, SymInt? capacity=None) -> (Tensor, Tensor)");
  m.def("query_gather(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]");
  m.def("query_scatter(Tensor[] base, Tensor[] packed, Tensor index, Tensor valid) -> Tensor[]");
  m.def("query_unpack(Tensor[] packed, Tensor index, Tensor valid, SymInt queries) -> Tensor[]");
  m.def("query_clear(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]");
}
