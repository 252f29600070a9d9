#include "fibers.h"

#include <sys/mman.h>

#include <stdexcept>

// Registers that calls preserve are kept on the stack (System V ABI of x86-64).
asm(R"(
.text
.globl cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

namespace cuda_on_cpu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStride = kStackBytes + kPage;
constexpr int kSavedRegisters = 6;

char* allocate_stacks() {
  void* memory = mmap(
      nullptr, kMaxThreads * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::runtime_error("no memory for the stacks of emulated threads");
  }
  for (int i = 0; i < kMaxThreads; ++i) {
    mprotect(static_cast<char*>(memory) + i * kStride, kPage, PROT_NONE);
  }
  return static_cast<char*>(memory);
}

}  // namespace

uintptr_t stack_of(int number) {
  static char* const stacks = allocate_stacks();
  return reinterpret_cast<uintptr_t>(stacks + number * kStride + kPage);
}

FiberState new_fiber(int number, void (*function)()) {
  // Stacks that began at the same place of a page would compete for the same lines of the cache.
  const size_t shift = number % 64 * 64;
  // As if `function` had been called by address 0, and the registers saved in it.
  uint64_t* top = reinterpret_cast<uint64_t*>(stack_of(number) + kStackBytes - shift) - 1;
  *top = 0;
  *--top = reinterpret_cast<uint64_t>(function);
  for (int i = 0; i < kSavedRegisters; ++i) {
    *--top = 0;
  }
  return top;
}

}  // namespace cuda_on_cpu
