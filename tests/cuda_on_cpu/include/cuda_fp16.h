#pragma once

#include "cuda_on_cpu/reduced_floats.h"

CUDA_ON_CPU_CONVERSIONS(
    __half, __half2, __float2half, __float2half_rn, __half2float, __float2half2_rn, __floats2half2_rn, __float22half2_rn,
    __half22float2, __half2half2, __halves2half2, __low2half, __high2half, __ushort_as_half, __half_as_ushort)
