// Includes DETRX_ISA_FILE, a path from this folder, once per instruction set: each time in a namespace of its own
// (detrx::cpu::isa_*, of which DETRX_SELECT_ISA chooses at run time), with
//   DETRX_TARGET  the function attribute that selects the instruction set
//   kVectorBytes  its vector width
//   DETRX_F16C    defined where the set has float16 conversions
// Nothing in that file may call inline functions of other headers, except always_inline ones: the linker could keep a
// copy that was compiled for the wrong processor.

#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../reduced_float.h"
#include "isa.h"

#define DETRX_TARGET
namespace detrx::cpu::isa_default {
namespace {
constexpr int kVectorBytes = 16;
#include DETRX_ISA_FILE
}  // namespace
}  // namespace detrx::cpu::isa_default
#undef DETRX_TARGET

#if defined(__x86_64__)
#define DETRX_F16C
#define DETRX_TARGET __attribute__((target("avx2,fma,f16c")))
namespace detrx::cpu::isa_avx2 {
namespace {
constexpr int kVectorBytes = 32;
#include DETRX_ISA_FILE
}  // namespace
}  // namespace detrx::cpu::isa_avx2
#undef DETRX_TARGET

#define DETRX_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")))
namespace detrx::cpu::isa_avx512 {
namespace {
constexpr int kVectorBytes = 64;
#include DETRX_ISA_FILE
}  // namespace
}  // namespace detrx::cpu::isa_avx512
#undef DETRX_TARGET
#undef DETRX_F16C
#endif
