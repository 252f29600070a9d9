// Which instruction set the CPU kernels use. They are compiled once per set (see foreach_isa.inl) and chosen at run
// time the way torch chooses its own: ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides.
#pragma once

#include <ATen/Version.h>

#include <string>

#define DETRX_INLINE inline __attribute__((always_inline))

// In detrx::cpu, the address of a function of isa_default, isa_avx2 or isa_avx512: of the set in use.
#if defined(__x86_64__)
#define DETRX_SELECT_ISA(...)                            \
  (isa() == Isa::Avx512 ? &isa_avx512::__VA_ARGS__       \
                        : isa() == Isa::Avx2 ? &isa_avx2::__VA_ARGS__ : &isa_default::__VA_ARGS__)
#else
#define DETRX_SELECT_ISA(...) (&isa_default::__VA_ARGS__)
#endif

namespace detrx::cpu {

enum class Isa { Default, Avx2, Avx512 };

inline Isa isa() {
  static const Isa isa = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return Isa::Avx512;
    }
    if (capability == "AVX2") {
      return Isa::Avx2;
    }
#endif
    return Isa::Default;
  }();
  return isa;
}

inline const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx2:
      return "avx2";
    default:
      return "default";
  }
}

}  // namespace detrx::cpu
