#include "races.h"

#include <algorithm>
#include <new>
#include <string>

#include "execution.h"
#include "findings.h"

namespace cuda_on_cpu {
namespace {

const char* verb(AccessKind kind) {
  return kind == AccessKind::kRead ? "reads" : kind == AccessKind::kWrite ? "writes" : "atomically changes";
}

std::string describe(const Access& access, size_t offset, size_t bytes) {
  return "thread " + std::to_string(access.thread) + " of block " + std::to_string(access.block) + " " +
         verb(access.kind) + " " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " at " +
         code(access.caller);
}

// Whether a barrier orders `access` before what the current thread does now.
bool is_ordered(const Access& access) {
  if (access.block != block_number) {
    return false;
  }
  const int other = access.thread, lane = other % kWarp;
  if (other == current->number || access.barriers != barriers_passed) {
    return true;
  }
  return other / kWarp == current->number / kWarp && access.time <= current->seen[lane];
}

// An empty place, else that of a read, else any: each in turn.
int place_for_access(Cell& cell) {
  for (const AccessKind kind : {AccessKind::kNone, AccessKind::kRead}) {
    for (int i = 0; i < kAccesses; ++i) {
      const int place = (cell.next + i) % kAccesses;
      if (cell.accesses[place].kind == kind) {
        cell.next = static_cast<uint8_t>((place + 1) % kAccesses);
        return place;
      }
    }
  }
  return cell.next++ % kAccesses;
}

bool conflict(AccessKind a, AccessKind b) {
  return a == AccessKind::kWrite || b == AccessKind::kWrite || a != b;
}

}  // namespace

void History::add(
    size_t offset, size_t bytes, size_t size, bool shared, uint32_t scope, AccessKind kind, const void* caller) {
  if (!cells_) {
    cells_.reset(static_cast<Cell*>(std::calloc(size / kCellBytes + 1, sizeof(Cell))));
    if (!cells_) {
      throw std::bad_alloc();
    }
  }
  Access now{scope, block_number, barriers_passed, current->time, uint16_t(current->number), 0, kind, caller};
  for (size_t index = offset / kCellBytes; index * kCellBytes < offset + bytes; ++index) {
    const size_t cell_begin = index * kCellBytes;
    const size_t begin = offset > cell_begin ? offset - cell_begin : 0;
    const size_t end = std::min(offset + bytes - cell_begin, kCellBytes);
    now.bytes = static_cast<uint8_t>((1u << end) - (1u << begin));
    Cell& cell = cells_[index];
    if (shared) {
      const uint8_t written = cell.written_scope == scope ? cell.written : 0;
      if (kind != AccessKind::kWrite && (now.bytes & ~written)) {
        add_finding("uninitialised shared memory: " + describe(now, offset, bytes) + ", which nobody has written");
      }
      if (kind != AccessKind::kRead) {
        cell.written = written | now.bytes;
        cell.written_scope = scope;
      }
    }
    for (Access& before : cell.accesses) {
      if (before.kind == AccessKind::kNone || before.scope != scope) {
        before.kind = AccessKind::kNone;
        continue;
      }
      if (!is_ordered(before)) {
        if ((before.bytes & now.bytes) && conflict(before.kind, kind)) {
          add_finding(
              "race: " + describe(now, offset, bytes) + ", and no barrier orders that after what " +
              describe(before, offset, bytes));
        }
      } else if ((before.bytes & ~now.bytes) == 0 && (kind == AccessKind::kWrite || kind == before.kind)) {
        before.kind = AccessKind::kNone;  // what conflicts with it conflicts with this access, too
      }
    }
    cell.accesses[place_for_access(cell)] = now;
  }
}

}  // namespace cuda_on_cpu
