// Global memory: CPU tensors, allocated here while a test runs kernels. Shared memory: that of one block at a time. Both
// are filled with 0xff, which is NaN or -1, so that what nobody wrote shows in results.
#include "memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_on_cpu/host_functions.h"
#include "execution.h"
#include "findings.h"

extern "C" char __ehdr_start[], _end[];  // this library, which holds constants

namespace cuda_on_cpu {
namespace {

constexpr int kUnknown = 0xff;

// Shared memory
struct StaticVariable {
  const void* key;
  std::unique_ptr<Region> region;
};
// Aligned to 16 bytes as on a device, and not to more by chance.
alignas(1024) char dynamic_memory[kMargin + 16 + kSharedMemoryOptIn + kMargin];
alignas(1024) char static_memory[4 * kSharedMemoryOptIn];
Region dynamic_region{};
std::vector<StaticVariable> static_variables;  // of the running kernel
size_t static_bytes = 0;
uint32_t launch_number = 0, shared_scope = 0;

void forget(Region& region) { std::memset(reinterpret_cast<char*>(region.begin), kUnknown, region.end - region.begin); }

// Global memory
// Never destroyed: tensors may outlive the library's static objects. Keys are first addresses.
std::mutex& mutex = *new std::mutex;
auto& allocations = *new std::map<uintptr_t, std::unique_ptr<Region>>;
Region* last_found = nullptr;

// Memory is what malloc gave, as that of PyTorch's own allocator: oneDNN frees memory with another allocator than it was
// allocated with, if another one has been set in between.
struct TrackingAllocator final : c10::Allocator {
  static void release(void* memory) {
    forget(reinterpret_cast<uintptr_t>(memory), 1);
    std::free(memory);
  }
  static void forget(uintptr_t begin, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    allocations.erase(allocations.lower_bound(begin), allocations.lower_bound(begin + bytes));
    last_found = nullptr;
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, c10::Device(c10::DeviceType::CPU)};
    }
    const size_t total = (bytes + 2 * kMargin - 1) / kMargin * kMargin;
    void* memory = std::aligned_alloc(kMargin, total);
    TORCH_CHECK(memory, "no memory for a tensor of ", bytes, " bytes");
    std::memset(memory, kUnknown, total);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
    forget(begin, total);
    auto region = std::make_unique<Region>();
    region->begin = begin;
    region->end = begin + bytes;
    const std::lock_guard<std::mutex> lock(mutex);
    allocations[begin] = std::move(region);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
} tracking;

const char* name(AccessKind kind) {
  return kind == AccessKind::kRead ? "read" : kind == AccessKind::kWrite ? "write" : "atomic operation";
}

}  // namespace

Region* find_shared(uintptr_t address) {
  if (dynamic_region.near(address)) {
    return &dynamic_region;
  }
  for (const StaticVariable& variable : static_variables) {
    if (variable.region->near(address)) {
      return variable.region.get();
    }
  }
  return nullptr;
}

Region* find_global(uintptr_t address) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (last_found && address >= last_found->begin && address < last_found->end) {
    return last_found;
  }
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) {
    return nullptr;
  }
  Region* region = (--after)->second.get();
  return region->near(address) ? last_found = region : nullptr;
}

void begin_launch_memory(size_t dynamic_bytes) {
  ++launch_number;
  dynamic_region.begin = reinterpret_cast<uintptr_t>(dynamic_memory) + kMargin + 16;
  dynamic_region.end = dynamic_region.begin + dynamic_bytes;
  dynamic_region.shared = true;
  dynamic_region.history = {};
  static_variables.clear();
  static_bytes = 0;
}

void begin_block_memory() {
  ++shared_scope;
  forget(dynamic_region);
  for (const StaticVariable& variable : static_variables) {
    forget(*variable.region);
  }
}

size_t static_shared_bytes() { return static_bytes; }

void* dynamic_shared() { return reinterpret_cast<void*>(dynamic_region.begin); }

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  const Unwatched unwatched;
  for (const StaticVariable& variable : static_variables) {
    if (variable.key == key) {
      return reinterpret_cast<void*>(variable.region->begin);
    }
  }
  static_bytes = (static_bytes + alignment - 1) / alignment * alignment + bytes;
  const size_t dynamic_bytes = dynamic_region.end - dynamic_region.begin;
  if (static_bytes > kSharedMemory || static_bytes + dynamic_bytes > shared_memory_limit()) {
    end_launch(
        "too much shared memory: " + std::to_string(static_bytes) + " bytes of variables, " +
        std::to_string(dynamic_bytes) + " bytes given by the launch");
  }
  uintptr_t begin = static_variables.empty() ? reinterpret_cast<uintptr_t>(static_memory)
                                             : static_variables.back().region->end;
  begin = (begin + 2 * kMargin + alignment - 1) / alignment * alignment;
  auto region = std::make_unique<Region>();
  region->begin = begin;
  region->end = begin + bytes;
  region->shared = true;
  forget(*region);
  static_variables.push_back({key, std::move(region)});
  return reinterpret_cast<void*>(begin);
}

void track_allocations(bool on) {
  static c10::Allocator* const original = c10::GetAllocator(c10::DeviceType::CPU);
  constexpr uint8_t kHighestPriority = 255;
  c10::SetAllocator(c10::DeviceType::CPU, on ? &tracking : original, kHighestPriority);
}

bool check_access(uintptr_t address, size_t bytes, AccessKind kind, const void* caller) {
  Region* region = find_shared(address);
  region = region ? region : find_global(address);
  if (!region) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(__ehdr_start), end = reinterpret_cast<uintptr_t>(_end);
    if (kind == AccessKind::kRead && address >= begin && address + bytes <= end) {
      return true;
    }
    add_finding(
        std::string(name(kind)) + " of " + std::to_string(bytes) + " bytes outside of all tensors by " + here(caller));
    return false;
  }
  const char* space = region->shared ? "shared" : "global";
  if (address < region->begin || address + bytes > region->end) {
    add_finding(
        std::string(name(kind)) + " out of bounds: " + std::to_string(bytes) + " bytes at offset " +
        std::to_string(static_cast<int64_t>(address - region->begin)) + " of " +
        std::to_string(region->end - region->begin) + " bytes of " + space + " memory by " + here(caller));
    return false;
  }
  region->history.add(
      address - region->begin, bytes, region->end - region->begin, region->shared,
      region->shared ? shared_scope : launch_number, kind, caller);
  return true;
}

}  // namespace cuda_on_cpu
