// Atomic operations, for the types that CUDA has them for. Threads change only in before_atomic, so that what follows it
// is atomic.
#pragma once

#include "execution.h"
#include "reduced_floats.h"

#define CUDA_ON_CPU_ATOMIC CUDA_ON_CPU_UNCHECKED __attribute__((noinline)) inline
#define CUDA_ON_CPU_BEFORE_ATOMIC(global_only) \
  ::cuda_on_cpu::before_atomic(address, sizeof(*address), global_only, __builtin_return_address(0))

#define CUDA_ON_CPU_FETCH(name, type, result)                      \
  CUDA_ON_CPU_ATOMIC type name(type* address, type value) {        \
    CUDA_ON_CPU_BEFORE_ATOMIC(false);                              \
    const type before = *address;                                  \
    *address = result;                                             \
    return before;                                                 \
  }
#define CUDA_ON_CPU_FETCH_INTEGER(name, result)       \
  CUDA_ON_CPU_FETCH(name, int, result)                \
  CUDA_ON_CPU_FETCH(name, unsigned, result)           \
  CUDA_ON_CPU_FETCH(name, unsigned long long, result)

// Integers wrap around.
CUDA_ON_CPU_FETCH(atomicAdd, int, static_cast<int>(unsigned(before) + unsigned(value)))
CUDA_ON_CPU_FETCH(atomicAdd, unsigned, before + value)
CUDA_ON_CPU_FETCH(atomicAdd, unsigned long long, before + value)
CUDA_ON_CPU_FETCH(atomicAdd, float, before + value)
CUDA_ON_CPU_FETCH(atomicAdd, double, before + value)
CUDA_ON_CPU_FETCH(atomicAdd, __half, __hadd(before, value))
CUDA_ON_CPU_FETCH(atomicAdd, __nv_bfloat16, __hadd(before, value))
CUDA_ON_CPU_FETCH(atomicAdd, __half2, __hadd2(before, value))
CUDA_ON_CPU_FETCH(atomicAdd, __nv_bfloat162, __hadd2(before, value))
CUDA_ON_CPU_FETCH(atomicSub, int, static_cast<int>(unsigned(before) - unsigned(value)))
CUDA_ON_CPU_FETCH(atomicSub, unsigned, before - value)
CUDA_ON_CPU_FETCH_INTEGER(atomicMax, before > value ? before : value)
CUDA_ON_CPU_FETCH(atomicMax, long long, before > value ? before : value)
CUDA_ON_CPU_FETCH_INTEGER(atomicMin, before < value ? before : value)
CUDA_ON_CPU_FETCH(atomicMin, long long, before < value ? before : value)
CUDA_ON_CPU_FETCH_INTEGER(atomicAnd, before & value)
CUDA_ON_CPU_FETCH_INTEGER(atomicOr, before | value)
CUDA_ON_CPU_FETCH_INTEGER(atomicXor, before ^ value)
CUDA_ON_CPU_FETCH_INTEGER(atomicExch, value)
CUDA_ON_CPU_FETCH(atomicExch, float, value)
CUDA_ON_CPU_FETCH(atomicInc, unsigned, before >= value ? 0 : before + 1)
CUDA_ON_CPU_FETCH(atomicDec, unsigned, before == 0 || before > value ? value : before - 1)
#undef CUDA_ON_CPU_FETCH_INTEGER
#undef CUDA_ON_CPU_FETCH

// float2 and float4 are added component by component, in global memory only.
CUDA_ON_CPU_ATOMIC float2 atomicAdd(float2* address, float2 value) {
  CUDA_ON_CPU_BEFORE_ATOMIC(true);
  const float2 before = *address;
  *address = {before.x + value.x, before.y + value.y};
  return before;
}
CUDA_ON_CPU_ATOMIC float4 atomicAdd(float4* address, float4 value) {
  CUDA_ON_CPU_BEFORE_ATOMIC(true);
  const float4 before = *address;
  *address = {before.x + value.x, before.y + value.y, before.z + value.z, before.w + value.w};
  return before;
}

#define CUDA_ON_CPU_CAS(type)                                                  \
  CUDA_ON_CPU_ATOMIC type atomicCAS(type* address, type compare, type value) { \
    CUDA_ON_CPU_BEFORE_ATOMIC(false);                                          \
    const type before = *address;                                              \
    *address = before == compare ? value : before;                             \
    return before;                                                             \
  }
CUDA_ON_CPU_CAS(int)
CUDA_ON_CPU_CAS(unsigned)
CUDA_ON_CPU_CAS(unsigned short)
CUDA_ON_CPU_CAS(unsigned long long)
#undef CUDA_ON_CPU_CAS
#undef CUDA_ON_CPU_BEFORE_ATOMIC
#undef CUDA_ON_CPU_ATOMIC
