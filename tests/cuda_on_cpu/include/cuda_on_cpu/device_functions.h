// Functions of device code that need nothing of the execution model: bits, conversions, arithmetic with a given rounding,
// loads and stores with a cache hint.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "execution.h"

// min and max as CUDA overloads them, for arguments of one type.
#define CUDA_ON_CPU_MIN_MAX(type)                                 \
  inline type min(type a, type b) { return a < b ? a : b; }       \
  inline type max(type a, type b) { return a > b ? a : b; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
#undef CUDA_ON_CPU_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) {
    result |= (x >> i & 1u) << (31 - i);
  }
  return result;
}
inline int __mul24(int a, int b) {
  return static_cast<int>(static_cast<int64_t>(a << 8 >> 8) * static_cast<int64_t>(b << 8 >> 8));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t(a) * b >> 32); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }

inline int __float_as_int(float x) { return cuda_on_cpu::from_bits<int>(cuda_on_cpu::to_bits(x)); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::from_bits<unsigned>(cuda_on_cpu::to_bits(x)); }
inline float __int_as_float(int x) { return cuda_on_cpu::from_bits<float>(cuda_on_cpu::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::from_bits<float>(cuda_on_cpu::to_bits(x)); }
inline long long __double_as_longlong(double x) { return static_cast<long long>(cuda_on_cpu::to_bits(x)); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::from_bits<double>(cuda_on_cpu::to_bits(x)); }

namespace cuda_on_cpu {
// The device's conversion: NaN is 0, what lies beyond the integers is the last one.
inline int to_int(float rounded) {
  return rounded != rounded ? 0 : rounded >= 0x1p31f ? 0x7fffffff : rounded < -0x1p31f ? -0x7fffffff - 1
                                                                                         : static_cast<int>(rounded);
}
}  // namespace cuda_on_cpu
inline int __float2int_rn(float x) { return cuda_on_cpu::to_int(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return cuda_on_cpu::to_int(std::trunc(x)); }
inline int __float2int_rd(float x) { return cuda_on_cpu::to_int(std::floor(x)); }
inline int __float2int_ru(float x) { return cuda_on_cpu::to_int(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// Never fused with another operation.
#define CUDA_ON_CPU_UNFUSED __attribute__((noinline)) inline
CUDA_ON_CPU_UNFUSED float __fadd_rn(float a, float b) { return a + b; }
CUDA_ON_CPU_UNFUSED float __fsub_rn(float a, float b) { return a - b; }
CUDA_ON_CPU_UNFUSED float __fmul_rn(float a, float b) { return a * b; }
CUDA_ON_CPU_UNFUSED float __fdiv_rn(float a, float b) { return a / b; }
CUDA_ON_CPU_UNFUSED double __dadd_rn(double a, double b) { return a + b; }
CUDA_ON_CPU_UNFUSED double __dmul_rn(double a, double b) { return a * b; }
#undef CUDA_ON_CPU_UNFUSED
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __saturatef(float x) { return x >= 0 ? (x < 1 ? x : 1) : 0; }

// Approximations on the device, whose errors differ from these of the host's library.
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

template <typename T>
inline T __ldg(const T* address) { return *address; }
template <typename T>
inline T __ldca(const T* address) { return *address; }
template <typename T>
inline T __ldcg(const T* address) { return *address; }
template <typename T>
inline T __ldcs(const T* address) { return *address; }
template <typename T>
inline void __stcg(T* address, T value) { *address = value; }
template <typename T>
inline void __stcs(T* address, T value) { *address = value; }
template <typename T>
inline void __stwt(T* address, T value) { *address = value; }
