// The memory that kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "races.h"

namespace cuda_on_cpu {

// Around shared variables and behind tensors lies as much that nothing may touch.
constexpr size_t kMargin = 256;

struct Region {
  uintptr_t begin, end;
  bool shared;
  History history;

  bool near(uintptr_t address) const { return address + kMargin >= begin && address < end + kMargin; }
};

// The region whose memory or margin holds `address`, or null.
Region* find_shared(uintptr_t address);
Region* find_global(uintptr_t address);

// Shared memory of a launch, and of the next of its blocks: with unknown contents.
void begin_launch_memory(size_t dynamic_bytes);
void begin_block_memory();
size_t static_shared_bytes();

// Whether CPU tensors are allocated where kernels may touch them.
void track_allocations(bool on);

// Called before a kernel touches memory, and reports what is wrong with that. A false answer ends the launch: going on
// would touch what is not there.
bool check_access(uintptr_t address, size_t bytes, AccessKind kind, const void* caller);

}  // namespace cuda_on_cpu
