// Runs blocks one after the other, in random order. Every thread of a block is a fiber. Which of them runs next is random;
// it changes at barriers and operations of a warp, and before some accesses to memory.
#include "execution.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_on_cpu/host_functions.h"
#include "fibers.h"
#include "findings.h"
#include "memory.h"
#include "warp_results.h"

namespace cuda_on_cpu {

Thread* current = nullptr;
Grid grid{};
Settings settings;
Counters counters;
const void* kernel = nullptr;
bool watching = false;
uint32_t barriers_passed = 0, block_number = 0;

namespace {

// Of a block that goes on for ever, for example because it waits for another one.
constexpr int64_t kMaxAccesses = int64_t(1) << 27;

enum class Status : uint8_t { kReady, kAtWarp, kAtBarrier, kExited };

struct Fiber {
  Thread thread;
  Status status;
  FiberState state;
  // What it waits for, and gets.
  Place place;
  WarpOperation operation;
  unsigned mask;
  WarpArgument argument;
  bool vote;
  uint64_t result;
};

// SplitMix64: small and fast.
class Random {
 public:
  void seed(uint64_t seed) { state_ = seed; }
  uint32_t below(uint32_t end) { return static_cast<uint32_t>((next() >> 32) * end >> 32); }

 private:
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  uint64_t state_ = 0;
};

Fiber fibers[kMaxThreads];
int thread_count = 0, at_barrier = 0, exited = 0;
std::vector<Fiber*> ready;
FiberState scheduler;
Random random_numbers;
uint64_t next_preemption = 0;
int64_t accesses_left = 0;

void (*run_kernel)(const void*) = nullptr;
const void* kernel_arguments = nullptr;
std::string failure;  // why the launch ends
std::map<const void*, size_t> allowed_dynamic_shared;

std::string in_kernel() {
  return " in block (" + std::to_string(grid.block.x) + ", " + std::to_string(grid.block.y) + ", " +
         std::to_string(grid.block.z) + ") of " + function(kernel);
}

Fiber& fiber() { return *reinterpret_cast<Fiber*>(current); }

void plan_preemption() {
  // On average every 1 / preemption accesses.
  next_preemption = settings.preemption > 0 ? 1 + random_numbers.below(uint32_t(2 / settings.preemption)) : 0;
}

void to_scheduler() {
  ++counters.switches;
  cuda_on_cpu_switch(&fiber().state, scheduler);
}

void run_fiber() {
  watching = true;
  run_kernel(kernel_arguments);
  watching = false;
  fiber().status = Status::kExited;
  to_scheduler();
  __builtin_trap();
}

void start(int number) {
  const dim3& threads = grid.threads;
  const unsigned i = number;
  Fiber& f = fibers[number];
  f = Fiber{};
  f.thread.index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
  f.thread.number = number;
  f.thread.stack = stack_of(number);
  f.thread.time = 1;
  f.state = new_fiber(number, &run_fiber);
  ready.push_back(&f);
}

std::string describe(const Fiber& f) {
  const std::string name = "thread " + std::to_string(f.thread.number);
  return f.status == Status::kExited
             ? name + " has exited"
             : name + " waits at " + f.place.function + " in " + f.place.file + ":" + std::to_string(f.place.line);
}

// Names in several places of the library may be the same.
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(const Fiber& a, const Fiber& b) {
  return a.place.line == b.place.line && same(a.place.function, b.place.function) && same(a.place.file, b.place.file);
}

// __syncwarp: what any of the lanes has seen, all see.
void synchronize(Fiber* warp, unsigned mask) {
  uint32_t seen[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) {
      warp[lane].thread.seen[lane] = warp[lane].thread.time++;
      for (int other = 0; other < kWarp; ++other) {
        seen[other] = std::max(seen[other], warp[lane].thread.seen[other]);
      }
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) {
      std::copy(seen, seen + kWarp, warp[lane].thread.seen);
    }
  }
}

void try_release_warp(const Fiber& f) {
  const int first = f.thread.number / kWarp * kWarp;
  Fiber* warp = fibers + first;
  unsigned mask = 0;  // lanes that have not exited
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(f.mask >> lane & 1) || first + lane >= thread_count || warp[lane].status == Status::kExited) {
      continue;
    }
    const Fiber& other = warp[lane];
    if (other.status != Status::kAtWarp || other.mask != f.mask) {
      return;
    }
    if (other.operation != f.operation || !same_place(other, f)) {
      throw std::runtime_error("lanes of a warp meet at different places: " + describe(f) + ", " + describe(other));
    }
    mask |= 1u << lane;
  }
  WarpArgument arguments[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) {
      arguments[lane] = warp[lane].argument;
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) {
      continue;
    }
    const int source = is_shuffle(f.operation)
                           ? source_lane(f.operation, lane, arguments[lane].argument, arguments[lane].width)
                           : lane;
    if (!(mask >> source & 1)) {
      throw std::runtime_error(
          "lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
          ", which takes no part or has exited: " + describe(warp[lane]));
    }
    warp[lane].result = warp_result(f.operation, mask, lane, arguments);
    warp[lane].status = Status::kReady;
    ready.push_back(warp + lane);
  }
  if (f.operation == WarpOperation::kSync) {
    synchronize(warp, mask);
  }
}

// Stricter than a GPU, which lets threads pass without those that have exited.
void try_release_block() {
  if (at_barrier == 0 || at_barrier + exited < thread_count) {
    return;
  }
  const Fiber& first = *std::find_if(fibers, fibers + thread_count, [](const Fiber& f) {
    return f.status == Status::kAtBarrier;
  });
  int votes = 0;
  for (int i = 0; i < thread_count; ++i) {
    if (fibers[i].status == Status::kExited || !same_place(fibers[i], first)) {
      throw std::runtime_error(
          "threads of a block meet at different places: " + describe(first) + ", " + describe(fibers[i]));
    }
    votes += fibers[i].vote;
  }
  ++barriers_passed;
  at_barrier = 0;
  for (int i = 0; i < thread_count; ++i) {
    fibers[i].result = votes;
    fibers[i].status = Status::kReady;
    ready.push_back(fibers + i);
  }
}

// Whoever waits for a thread that has exited waits no longer, or in vain.
void release_from(const Fiber& gone) {
  Fiber* warp = fibers + gone.thread.number / kWarp * kWarp;
  for (Fiber* f = warp; f < warp + kWarp && f < fibers + thread_count; ++f) {
    if (f->status == Status::kAtWarp) {
      try_release_warp(*f);
    }
  }
  try_release_block();
}

void run_block() {
  ready.clear();
  barriers_passed = 0;
  at_barrier = exited = 0;
  accesses_left = kMaxAccesses;
  begin_block_memory();
  for (int i = 0; i < thread_count; ++i) {
    start(i);
  }
  while (exited < thread_count) {
    if (ready.empty()) {
      std::string text = "no thread can go on:";
      for (int i = 0, shown = 0; i < thread_count && shown < 8; ++i) {
        if (fibers[i].status != Status::kExited) {
          text += (shown++ ? "; " : " ") + describe(fibers[i]);
        }
      }
      throw std::runtime_error(text);
    }
    std::swap(ready[random_numbers.below(uint32_t(ready.size()))], ready.back());
    Fiber* f = ready.back();
    ready.pop_back();
    current = &f->thread;
    cuda_on_cpu_switch(&scheduler, f->state);
    current = nullptr;
    if (!failure.empty()) {
      throw std::runtime_error(failure);
    }
    switch (f->status) {
      case Status::kReady:
        ready.push_back(f);
        break;
      case Status::kAtWarp:
        try_release_warp(*f);
        break;
      case Status::kAtBarrier:
        ++at_barrier;
        try_release_block();
        break;
      case Status::kExited:
        ++exited;
        release_from(*f);
        break;
    }
  }
}

void check_config(const LaunchConfig& config) {
  const auto& [blocks, threads, dynamic_bytes] = config;
  const auto allowed = allowed_dynamic_shared.find(kernel);
  const size_t limit = std::max<size_t>(
      kSharedMemory, allowed == allowed_dynamic_shared.end() ? 0 : allowed->second);
  const uint64_t count = uint64_t(threads.x) * threads.y * threads.z;
  const bool valid = blocks.x > 0 && blocks.y > 0 && blocks.z > 0 && blocks.x <= 0x7fffffffu && blocks.y <= 65535 &&
                     blocks.z <= 65535 && count > 0 && count <= kMaxThreads && threads.z <= 64 && dynamic_bytes <= limit;
  if (!valid) {
    const auto text = [](const dim3& d) {
      return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
    };
    throw std::runtime_error(
        "invalid launch of " + function(kernel) + ": " + text(blocks) + " blocks of " + text(threads) + " threads, " +
        std::to_string(dynamic_bytes) + " bytes of shared memory where it may have " + std::to_string(limit));
  }
}

}  // namespace

void end_launch(const std::string& why) {
  const Unwatched unwatched;
  failure = why;
  to_scheduler();
  __builtin_trap();
}

void assertion_failed(const char* condition, const char* file, int line) {
  const Unwatched unwatched;
  end_launch(std::string("assertion failed: ") + condition + ", " + file + ":" + std::to_string(line));
}

void check_launch_bounds(unsigned max_threads) {
  const Unwatched unwatched;
  if (unsigned(thread_count) > max_threads) {
    end_launch(
        "a launch of " + std::to_string(thread_count) + " threads where __launch_bounds__ says " +
        std::to_string(max_threads));
  }
}

size_t shared_memory_limit() { return allowed_dynamic_shared.count(kernel) ? kSharedMemoryOptIn : kSharedMemory; }

void allow_dynamic_shared(const void* which, int bytes) { allowed_dynamic_shared[which] = bytes; }

uint64_t warp_operation(
    WarpOperation operation, unsigned mask, uint64_t value, int argument, int width, const Place& place) {
  const Unwatched unwatched;
  Fiber& f = fiber();
  if (!(mask >> f.thread.number % kWarp & 1)) {
    end_launch("a thread calls " + std::string(place.function) + " with a mask that does not contain it, " +
               place.file + ":" + std::to_string(place.line));
  }
  if (width <= 0 || width > kWarp || (width & (width - 1)) != 0) {
    end_launch(std::string(place.function) + " with width " + std::to_string(width) + ", expected a power of 2 up to 32, " +
               place.file + ":" + std::to_string(place.line));
  }
  f.place = place;
  f.operation = operation;
  f.mask = mask;
  f.argument = {value, argument, width};
  f.status = Status::kAtWarp;
  to_scheduler();
  return f.result;
}

int block_barrier(bool vote, const Place& place) {
  const Unwatched unwatched;
  Fiber& f = fiber();
  f.place = place;
  f.vote = vote;
  f.status = Status::kAtBarrier;
  to_scheduler();
  return static_cast<int>(f.result);
}

void on_access(const void* address, size_t bytes, size_t alignment, AccessKind kind, const void* caller) {
  const uintptr_t number = reinterpret_cast<uintptr_t>(address);
  if (!watching || number - current->stack < kStackBytes) {
    return;
  }
  const Unwatched unwatched;
  ++counters.accesses;
  if (next_preemption && --next_preemption == 0) {
    plan_preemption();
    fiber().status = Status::kReady;
    to_scheduler();
  }
  if (--accesses_left == 0) {
    end_launch("a block does not end; it may wait for another block, and blocks run one after the other");
  }
  if (!settings.check) {
    return;
  }
  if (number % alignment) {
    add_finding("misaligned access to " + std::to_string(bytes) + " bytes by " + here(caller));
  }
  if (!check_access(number, bytes, kind, caller)) {
    end_launch("the launch ended");
  }
}

void before_atomic(const void* address, size_t bytes, bool in_global_memory_only, const void* caller) {
  if (in_global_memory_only && find_shared(reinterpret_cast<uintptr_t>(address))) {
    const Unwatched unwatched;
    add_finding("atomic operation that shared memory does not have by " + here(caller));
  }
  on_access(address, bytes, bytes, AccessKind::kAtomic, caller);
}

void launch(const LaunchConfig& config, const void* which, void (*run)(const void*), const void* arguments) {
  if (current) {
    throw std::runtime_error("not emulated: launches by kernels");
  }
  kernel = which;
  run_kernel = run;
  kernel_arguments = arguments;
  check_config(config);
  ++counters.launches;
  dim3 blocks = config.blocks;
  if (settings.max_blocks) {
    blocks.x = std::min(blocks.x, settings.max_blocks);
  }
  random_numbers.seed(settings.seed * 1000003 + ++settings.launches);
  plan_preemption();
  grid = {blocks, config.threads, {}};
  thread_count = static_cast<int>(config.threads.x * config.threads.y * config.threads.z);
  failure.clear();
  begin_launch_memory(config.dynamic_shared);
  std::vector<uint32_t> order(size_t(blocks.x) * blocks.y * blocks.z);
  for (uint32_t i = 0; i < order.size(); ++i) {
    order[i] = i;
    std::swap(order[i], order[random_numbers.below(i + 1)]);
  }
  try {
    for (const uint32_t i : order) {
      grid.block = {i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y};
      block_number = i;
      run_block();
    }
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(error.what() + in_kernel());
  }
}

}  // namespace cuda_on_cpu
