// float16 and bfloat16 as bit patterns, for CPU kernels that are compiled once per instruction set: they must not use
// the inline functions of c10 (see cpu/foreach_isa.inl). Branch-free, so that loops over them vectorise.
#pragma once

#include <cstdint>

#include "macros.h"

namespace detrx {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type of the arithmetic on values of type T.
template <typename T>
struct ComputeType {
  typedef float type;
};
template <>
struct ComputeType<double> {
  typedef double type;
};
template <typename T>
using Compute = typename ComputeType<T>::type;

DETRX_HOST_DEVICE uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

DETRX_HOST_DEVICE float float_from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

DETRX_HOST_DEVICE float widen(float x) {
  return x;
}
DETRX_HOST_DEVICE double widen(double x) {
  return x;
}
DETRX_HOST_DEVICE float widen(BFloat16 x) {
  return float_from_bits(uint32_t(x.bits) << 16);
}
DETRX_HOST_DEVICE float widen(Float16 x) {
  // The exponents differ by 112; the multiplication also normalises subnormal numbers.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t finite = float_bits(float_from_bits(magnitude) * 0x1p112f);
  return float_from_bits(sign | (magnitude < 0x0f800000u ? finite : magnitude | 0x7f800000u));
}

// To nearest, ties to even.
DETRX_HOST_DEVICE void narrow(float x, float& result) {
  result = x;
}
DETRX_HOST_DEVICE void narrow(double x, double& result) {
  result = x;
}
DETRX_HOST_DEVICE void narrow(float x, BFloat16& result) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  result.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
DETRX_HOST_DEVICE void narrow(float x, Float16& result) {
  const uint32_t magnitude = float_bits(x) & 0x7fffffffu, sign = float_bits(x) >> 16 & 0x8000u;
  const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  // The last bit of 0.5 + x is that of the smallest float16.
  const uint32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
  uint32_t bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x477ff000u ? 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  result.bits = static_cast<uint16_t>(sign | bits);
}

}  // namespace detrx
