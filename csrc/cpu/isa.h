// Which instruction set the CPU kernels use. They are compiled once per set (see DETRX_FOR_EACH_ISA users) and chosen
// at run time the way torch chooses its own: ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace detrx {

enum class CpuIsa { Default, Avx2, Avx512 };

inline CpuIsa cpu_isa() {
  static const CpuIsa isa = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return CpuIsa::Avx512;
    }
    if (capability == "AVX2") {
      return CpuIsa::Avx2;
    }
#endif
    return CpuIsa::Default;
  }();
  return isa;
}

inline const char* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::Avx512:
      return "avx512";
    case CpuIsa::Avx2:
      return "avx2";
    default:
      return "default";
  }
}

}  // namespace detrx
