#pragma once

#include "cuda_on_cpu/reduced_floats.h"

CUDA_ON_CPU_CONVERSIONS(
    __nv_bfloat16, __nv_bfloat162, __float2bfloat16, __float2bfloat16_rn, __bfloat162float, __float2bfloat162_rn,
    __floats2bfloat162_rn, __float22bfloat162_rn, __bfloat1622float2, __bfloat162bfloat162, __halves2bfloat162,
    __low2bfloat16, __high2bfloat16, __ushort_as_bfloat16, __bfloat16_as_ushort)
