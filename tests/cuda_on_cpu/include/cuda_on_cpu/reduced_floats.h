// float16 and bfloat16 as cuda_fp16.h and cuda_bf16.h have them. Every operation rounds once, to nearest, ties to even, as
// the device's instructions do; NaN results have the device's bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "execution.h"

namespace cuda_on_cpu {

struct Float16Format {
  static constexpr int kMantissa = 10, kMinExponent = -14;
  static constexpr uint16_t kInfinity = 0x7c00;
};
struct BFloat16Format {
  static constexpr int kMantissa = 7, kMinExponent = -126;
  static constexpr uint16_t kInfinity = 0x7f80;
};

template <typename F>
CUDA_ON_CPU_UNCHECKED uint16_t round_to(double x) {
  if (x != x) {
    return 0x7fff;
  }
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(x);
  if (magnitude == 0) {
    return sign;
  }
  if (std::isinf(x)) {
    return sign | F::kInfinity;
  }
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = exponent - 1 > F::kMinExponent ? exponent - 1 : F::kMinExponent;
  // In units of the last place, the leading bit included: a number of kMantissa + 1 bits, fewer if it is subnormal.
  const double units = std::nearbyint(std::ldexp(magnitude, F::kMantissa - exponent));
  const int64_t bits = (int64_t(exponent - F::kMinExponent) << F::kMantissa) + static_cast<int64_t>(units);
  return sign | static_cast<uint16_t>(bits < F::kInfinity ? bits : F::kInfinity);
}

template <typename F>
CUDA_ON_CPU_UNCHECKED double widen(uint16_t bits) {
  const int magnitude = bits & 0x7fff, mask = (1 << F::kMantissa) - 1;
  double result;
  if (magnitude >= F::kInfinity) {
    result = magnitude == F::kInfinity ? INFINITY : NAN;
  } else {
    const int exponent = magnitude >> F::kMantissa;
    const int units = exponent ? (magnitude & mask) | (mask + 1) : magnitude;
    result = std::ldexp(units, (exponent ? exponent - 1 : 0) + F::kMinExponent - F::kMantissa);
  }
  return bits & 0x8000 ? -result : result;
}

// a * b + c, rounded to odd: rounding the result again, to fewer bits, gives what one rounding would. a * b is exact.
CUDA_ON_CPU_UNCHECKED inline double multiply_add(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  if (!std::isfinite(sum)) {
    return sum;
  }
  const double shifted = sum - product, error = (product - (sum - shifted)) + (c - shifted);
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  if (error != 0 && bits % 2 == 0) {
    bits += (error > 0) == (sum > 0) ? 1 : -1;
  }
  double result;
  std::memcpy(&result, &bits, sizeof(bits));
  return result;
}

template <typename F>
struct ReducedFloat {
  uint16_t bits;

  ReducedFloat() = default;
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  CUDA_ON_CPU_UNCHECKED ReducedFloat(T x) : bits(round_to<F>(static_cast<double>(x))) {}
  CUDA_ON_CPU_UNCHECKED operator float() const { return static_cast<float>(widen<F>(bits)); }
};

template <typename F>
struct alignas(4) ReducedPair {
  ReducedFloat<F> x, y;
};

}  // namespace cuda_on_cpu

typedef cuda_on_cpu::ReducedFloat<cuda_on_cpu::Float16Format> __half;
typedef cuda_on_cpu::ReducedFloat<cuda_on_cpu::BFloat16Format> __nv_bfloat16;
typedef cuda_on_cpu::ReducedPair<cuda_on_cpu::Float16Format> __half2;
typedef cuda_on_cpu::ReducedPair<cuda_on_cpu::BFloat16Format> __nv_bfloat162;
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

// What both types have under one name.
#define CUDA_ON_CPU_REDUCED template <typename F> CUDA_ON_CPU_UNCHECKED
#define CUDA_ON_CPU_ONE ::cuda_on_cpu::ReducedFloat<F>
#define CUDA_ON_CPU_TWO ::cuda_on_cpu::ReducedPair<F>

CUDA_ON_CPU_REDUCED CUDA_ON_CPU_ONE __hadd(CUDA_ON_CPU_ONE a, CUDA_ON_CPU_ONE b) {
  return cuda_on_cpu::multiply_add(1, cuda_on_cpu::widen<F>(a.bits), cuda_on_cpu::widen<F>(b.bits));
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_ONE __hsub(CUDA_ON_CPU_ONE a, CUDA_ON_CPU_ONE b) {
  return cuda_on_cpu::multiply_add(1, cuda_on_cpu::widen<F>(a.bits), -cuda_on_cpu::widen<F>(b.bits));
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_ONE __hmul(CUDA_ON_CPU_ONE a, CUDA_ON_CPU_ONE b) {
  return cuda_on_cpu::widen<F>(a.bits) * cuda_on_cpu::widen<F>(b.bits);
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_ONE __hfma(CUDA_ON_CPU_ONE a, CUDA_ON_CPU_ONE b, CUDA_ON_CPU_ONE c) {
  return cuda_on_cpu::multiply_add(
      cuda_on_cpu::widen<F>(a.bits), cuda_on_cpu::widen<F>(b.bits), cuda_on_cpu::widen<F>(c.bits));
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_TWO __hadd2(CUDA_ON_CPU_TWO a, CUDA_ON_CPU_TWO b) {
  return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_TWO __hsub2(CUDA_ON_CPU_TWO a, CUDA_ON_CPU_TWO b) {
  return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_TWO __hmul2(CUDA_ON_CPU_TWO a, CUDA_ON_CPU_TWO b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
CUDA_ON_CPU_REDUCED CUDA_ON_CPU_TWO __hfma2(CUDA_ON_CPU_TWO a, CUDA_ON_CPU_TWO b, CUDA_ON_CPU_TWO c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
CUDA_ON_CPU_REDUCED float __low2float(CUDA_ON_CPU_TWO a) { return a.x; }
CUDA_ON_CPU_REDUCED float __high2float(CUDA_ON_CPU_TWO a) { return a.y; }
#undef CUDA_ON_CPU_TWO
#undef CUDA_ON_CPU_ONE
#undef CUDA_ON_CPU_REDUCED

// What they have under names of their own: cuda_fp16.h and cuda_bf16.h put the type's into these.
#define CUDA_ON_CPU_CONVERSIONS(one, two, float_to_one, float_to_one_rn, one_to_float, float_to_two, floats_to_two,      \
                                float2_to_two, two_to_float2, one_to_two, ones_to_two, low, high, from_bits, to_bits)    \
  CUDA_ON_CPU_UNCHECKED inline one float_to_one(float x) { return x; }                                                   \
  CUDA_ON_CPU_UNCHECKED inline one float_to_one_rn(float x) { return x; }                                                \
  CUDA_ON_CPU_UNCHECKED inline float one_to_float(one x) { return x; }                                                   \
  CUDA_ON_CPU_UNCHECKED inline two float_to_two(float x) { return {x, x}; }                                              \
  CUDA_ON_CPU_UNCHECKED inline two floats_to_two(float x, float y) { return {x, y}; }                                    \
  CUDA_ON_CPU_UNCHECKED inline two float2_to_two(float2 x) { return {x.x, x.y}; }                                        \
  CUDA_ON_CPU_UNCHECKED inline float2 two_to_float2(two x) { return {x.x, x.y}; }                                        \
  CUDA_ON_CPU_UNCHECKED inline two one_to_two(one x) { return {x, x}; }                                                  \
  CUDA_ON_CPU_UNCHECKED inline two ones_to_two(one x, one y) { return {x, y}; }                                          \
  CUDA_ON_CPU_UNCHECKED inline one low(two x) { return x.x; }                                                            \
  CUDA_ON_CPU_UNCHECKED inline one high(two x) { return x.y; }                                                           \
  CUDA_ON_CPU_UNCHECKED inline one from_bits(unsigned short bits) { one x; x.bits = bits; return x; }                    \
  CUDA_ON_CPU_UNCHECKED inline unsigned short to_bits(one x) { return x.bits; }
