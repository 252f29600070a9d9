// Checks of operators' arguments. Each throws an error that names the operator, the argument and its shape, and says
// what was expected: ValueError for shapes and devices, TypeError for dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>
#include <string_view>

namespace detrx {

// `expected` describes the shape, such as "(T, k)".
inline void check_rank(
    const char* op, std::string_view name, const at::Tensor& tensor, int64_t rank, const char* expected) {
  TORCH_CHECK_VALUE(tensor.dim() == rank, op, ": ", name, " has shape ", tensor.sizes(), ", expected ", expected);
}

// The shape that another argument, the reason, asks for.
inline void check_shape(
    const char* op, std::string_view name, const at::Tensor& tensor, at::IntArrayRef expected,
    std::string_view reason_name, const at::Tensor& reason) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == expected,
      op, ": ", name, " has shape ", tensor.sizes(), ", expected ", expected, " to fit ", reason_name, " of shape ",
      reason.sizes());
}

// `expected` is the dtype's name.
inline void check_dtype(
    const char* op, std::string_view name, const at::Tensor& tensor, at::ScalarType dtype, const char* expected) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == dtype,
      op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", tensor.scalar_type(), ", expected ", expected);
}

inline void check_floating(const char* op, std::string_view name, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", dtype,
      ", expected float32, float64, float16 or bfloat16");
}

inline void check_same_dtype(
    const char* op, std::string_view name, const at::Tensor& tensor, std::string_view other_name,
    const at::Tensor& other) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == other.scalar_type(),
      op, ": ", name, " of shape ", tensor.sizes(), " has dtype ", tensor.scalar_type(), ", ", other_name,
      " of shape ", other.sizes(), " has ", other.scalar_type());
}

inline void check_same_device(
    const char* op, std::string_view name, const at::Tensor& tensor, std::string_view other_name,
    const at::Tensor& other) {
  TORCH_CHECK_VALUE(
      tensor.device() == other.device(),
      op, ": ", name, " of shape ", tensor.sizes(), " is on ", tensor.device(), ", ", other_name, " of shape ",
      other.sizes(), " on ", other.device());
}

// The dtype and the device of another argument.
inline void check_like(
    const char* op, std::string_view name, const at::Tensor& tensor, std::string_view other_name,
    const at::Tensor& other) {
  check_same_dtype(op, name, tensor, other_name, other);
  check_same_device(op, name, tensor, other_name, other);
}

// The kernels count in 32 bits: `count` are the `what` of the tensor.
inline void check_count(
    const char* op, std::string_view name, const at::Tensor& tensor, int64_t count, const char* what) {
  TORCH_CHECK_VALUE(
      count <= std::numeric_limits<int32_t>::max(),
      op, ": ", name, " of shape ", tensor.sizes(), " has ", count, " ", what, ", expected at most 2^31 - 1");
}

}  // namespace detrx
