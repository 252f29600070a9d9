// What kernels and their launches ask of the execution model (src/execution.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "vector_types.h"

// Functions of the emulation itself that are inlined into kernels: their accesses are none of the kernel's.
#define CUDA_ON_CPU_UNCHECKED __attribute__((no_sanitize("thread", "undefined")))

struct CUstream_st;
typedef CUstream_st* cudaStream_t;

namespace cuda_on_cpu {

constexpr int kWarp = 32;

struct Thread {
  uint3 index;
  int number;       // in its block
  uintptr_t stack;  // lowest address
  // Counts the __syncwarp of this thread. seen[lane]: up to which of another lane's a __syncwarp has shown us its writes.
  uint32_t time, seen[kWarp];
};

struct Grid {
  dim3 blocks, threads;
  uint3 block;
};

extern Thread* current;  // null on the host
extern Grid grid;

CUDA_ON_CPU_UNCHECKED inline uint3 thread_index() { return current->index; }
CUDA_ON_CPU_UNCHECKED inline uint3 block_index() { return grid.block; }
CUDA_ON_CPU_UNCHECKED inline dim3 block_dim() { return grid.threads; }
CUDA_ON_CPU_UNCHECKED inline dim3 grid_dim() { return grid.blocks; }

// Where in the source a thread waits.
struct Place {
  const char* function;
  const char* file;
  int line;
};

enum class WarpOperation {
  kSync, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot, kMatchAny,
  kAddUnsigned, kAddSigned, kMinUnsigned, kMinSigned, kMaxUnsigned, kMaxSigned, kAnd, kOr, kXor
};

// Waits for the lanes of `mask`. `argument` is a shuffle's lane, distance or lane mask.
uint64_t warp_operation(
    WarpOperation operation, unsigned mask, uint64_t value, int argument, int width, const Place& place);

// __syncthreads and its relatives: how many of the block's threads have a `vote`.
int block_barrier(bool vote, const Place& place);

// Memory of a block. A static variable is known by the address of something unique to it.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
template <typename T, size_t kAlignment = alignof(T)>
CUDA_ON_CPU_UNCHECKED T& shared(const void* key) {
  return *static_cast<T*>(static_shared(key, sizeof(T), kAlignment));
}

// Called before the memory of an atomic operation is touched.
void before_atomic(const void* address, size_t bytes, bool in_global_memory_only, const void* caller);

void check_launch_bounds(unsigned max_threads);
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

struct LaunchConfig {
  dim3 blocks, threads;
  size_t dynamic_shared;
};

void launch(const LaunchConfig& config, const void* kernel, void (*run)(const void*), const void* arguments);

// kernel<<<a, b, c, d>>>(x, y) is rewritten as kernel->*Launch(a, b, c, d)(x, y).
template <typename... A>
struct Call {
  LaunchConfig config;
  std::tuple<A...> arguments;
};

struct Launch {
  LaunchConfig config;
  Launch(dim3 blocks, dim3 threads, size_t dynamic_shared = 0, cudaStream_t = nullptr)
      : config{blocks, threads, dynamic_shared} {}
  template <typename... A>
  Call<std::decay_t<A>...> operator()(A&&... arguments) const {
    return {config, {std::forward<A>(arguments)...}};
  }
};

template <typename... P>
struct BoundKernel {
  void (*kernel)(P...);
  std::tuple<P...> arguments;

  CUDA_ON_CPU_UNCHECKED static void run(const void* self) {
    const auto* bound = static_cast<const BoundKernel*>(self);
    bound->call(std::index_sequence_for<P...>());
  }
  template <size_t... i>
  CUDA_ON_CPU_UNCHECKED void call(std::index_sequence<i...>) const {
    kernel(std::get<i>(arguments)...);
  }
};

template <typename... P, typename... A>
void operator->*(void (*kernel)(P...), const Call<A...>& call) {
  const BoundKernel<P...> bound{kernel, std::tuple<P...>(call.arguments)};
  launch(call.config, reinterpret_cast<const void*>(kernel), &BoundKernel<P...>::run, &bound);
}

template <typename T>
CUDA_ON_CPU_UNCHECKED uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "not emulated: warp operations on more than 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
CUDA_ON_CPU_UNCHECKED T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu
