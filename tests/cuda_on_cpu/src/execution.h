// What the parts of the execution model share.
#pragma once

#include <cstdint>
#include <string>

#include "cuda_on_cpu/execution.h"
#include "races.h"

namespace cuda_on_cpu {

struct Settings {
  uint64_t seed = 0;
  double preemption = 0;    // probability that another thread goes on before an access to memory
  unsigned max_blocks = 0;  // grids are cut to this in x, 0: not
  bool check = true;
  uint64_t launches = 0;    // with these settings
};
extern Settings settings;

// Of the running launch.
struct Counters {
  int64_t launches = 0, accesses = 0, switches = 0;
};
extern Counters counters;

// The running kernel.
extern const void* kernel;
// Counts the block barriers that the running block has passed: all its threads pass them together.
extern uint32_t barriers_passed;
// The running block in the order of the grid.
extern uint32_t block_number;

// Whether what runs is a kernel: its accesses to memory are watched. The linker may take inline functions of the standard
// library from an instrumented file, so that the emulation calls the hooks, too.
extern bool watching;

// In the scope of one of these, the emulation works for the kernel that called it.
class Unwatched {
 public:
  Unwatched() : before_(watching) { watching = false; }
  ~Unwatched() { watching = before_; }

 private:
  bool before_;
};

// For the hooks of the compiler's instrumentation (hooks.cpp). The access needs this alignment.
void on_access(const void* address, size_t bytes, size_t alignment, AccessKind kind, const void* caller);

// Bytes that variables and the launch may take together: more than a device gives for nothing if the kernel asked for it.
size_t shared_memory_limit();

// Ends the launch with an error, from within a kernel.
[[noreturn]] void end_launch(const std::string& why);

}  // namespace cuda_on_cpu
