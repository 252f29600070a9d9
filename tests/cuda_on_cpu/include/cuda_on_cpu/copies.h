// Sends calls of the library's copies and fills, which the compiler does not instrument, to hooks.cpp. Stands before all
// other headers.
#pragma once

extern "C" {
void* memcpy(void*, const void*, decltype(sizeof(0))) noexcept __asm__("cuda_on_cpu_memcpy");
void* memmove(void*, const void*, decltype(sizeof(0))) noexcept __asm__("cuda_on_cpu_memmove");
void* memset(void*, int, decltype(sizeof(0))) noexcept __asm__("cuda_on_cpu_memset");
}
