// Threads of a kernel as fibers: stacks, and changing from one to another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

constexpr int kMaxThreads = 1024;  // of a block
constexpr size_t kStackBytes = 128 * 1024;

// Where a fiber stopped.
typedef void* FiberState;

// The lowest address of the stack of fiber `number`. Below it is a page that must not be touched.
uintptr_t stack_of(int number);
FiberState new_fiber(int number, void (*function)());

// Saves the running fiber and goes on with another.
extern "C" void cuda_on_cpu_switch(FiberState* save, FiberState next);

}  // namespace cuda_on_cpu
