// CUDA's built-in vector types, with CUDA's alignments.
#pragma once

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define CUDA_ON_CPU_VECTORS(name, type, pair_alignment, quad_alignment)                                      \
  struct alignas(pair_alignment) name##2 { type x, y; };                                                     \
  struct name##3 { type x, y, z; };                                                                          \
  struct alignas(quad_alignment) name##4 { type x, y, z, w; };                                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                           \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(char, signed char, 2, 4)
CUDA_ON_CPU_VECTORS(uchar, unsigned char, 2, 4)
CUDA_ON_CPU_VECTORS(short, short, 4, 8)
CUDA_ON_CPU_VECTORS(ushort, unsigned short, 4, 8)
CUDA_ON_CPU_VECTORS(int, int, 8, 16)
CUDA_ON_CPU_VECTORS(uint, unsigned, 8, 16)
CUDA_ON_CPU_VECTORS(longlong, long long, 16, 16)
CUDA_ON_CPU_VECTORS(ulonglong, unsigned long long, 16, 16)
CUDA_ON_CPU_VECTORS(float, float, 8, 16)
CUDA_ON_CPU_VECTORS(double, double, 16, 16)
#undef CUDA_ON_CPU_VECTORS
