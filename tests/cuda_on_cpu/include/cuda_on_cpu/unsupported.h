// What the execution model has no notion of. Using it is an error of the compiler, or of the linker at the latest.
#pragma once

#include <cstddef>

#define CUDA_ON_CPU_UNSUPPORTED(why) __attribute__((error("not emulated: " why)))

CUDA_ON_CPU_UNSUPPORTED("the lanes that happen to be active are not defined; pass a mask") unsigned __activemask();
CUDA_ON_CPU_UNSUPPORTED("blocks run one after the other, and fences do not order them") void __threadfence();
CUDA_ON_CPU_UNSUPPORTED("use __syncwarp or __syncthreads to order threads") void __threadfence_block();
CUDA_ON_CPU_UNSUPPORTED("the host's memory is no part of the model") void __threadfence_system();
CUDA_ON_CPU_UNSUPPORTED("time") void __nanosleep(unsigned);
CUDA_ON_CPU_UNSUPPORTED("time") long long clock64();
CUDA_ON_CPU_UNSUPPORTED("asynchronous copies") void __pipeline_memcpy_async(void*, const void*, size_t, size_t = 0);
CUDA_ON_CPU_UNSUPPORTED("asynchronous copies") void __pipeline_commit();
CUDA_ON_CPU_UNSUPPORTED("asynchronous copies") void __pipeline_wait_prior(size_t);
#undef CUDA_ON_CPU_UNSUPPORTED

// Inline PTX belongs between #if !defined(DETRX_EMULATED) and #else, with the same in C++ after it.
#define asm inline_ptx_is_not_emulated_write_an_alternative_for_DETRX_EMULATED
