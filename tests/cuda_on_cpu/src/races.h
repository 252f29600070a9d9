// Who touched a piece of memory, and whether a barrier lies between that and the next who does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace cuda_on_cpu {

enum class AccessKind : uint8_t { kNone, kRead, kWrite, kAtomic };

struct Access {
  uint32_t scope;             // launch for global memory, block of any launch for shared memory: earlier ones are over
  uint32_t block;             // of the launch
  uint32_t barriers, time;    // block barriers and __syncwarp that the thread had passed
  uint16_t thread;
  uint8_t bytes;              // bit i: byte i of the cell
  AccessKind kind;
  const void* caller;
};

constexpr size_t kCellBytes = 4;
constexpr int kAccesses = 4;

// Accesses to kCellBytes bytes: the last write of every byte, and reads in what room is left.
struct Cell {
  Access accesses[kAccesses];
  uint32_t written_scope;
  uint8_t written, next;
};

struct FreeCells {
  void operator()(Cell* cells) const { std::free(cells); }
};

class History {
 public:
  // Notes that the current thread accesses `bytes` bytes at `offset` of a region of `size` bytes, and reports races with
  // earlier accesses, and reads of shared memory that nobody has written.
  void add(size_t offset, size_t bytes, size_t size, bool shared, uint32_t scope, AccessKind kind, const void* caller);

 private:
  std::unique_ptr<Cell[], FreeCells> cells_;  // zero where nothing was touched
};

}  // namespace cuda_on_cpu
