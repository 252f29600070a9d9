// What Python asks of the emulation.
#include <torch/library.h>

#include "execution.h"
#include "findings.h"
#include "memory.h"

TORCH_LIBRARY_FRAGMENT(detrx_emulated, m) {
  m.def(
      "_configure(int seed, float preemption, int max_blocks, bool check) -> ()",
      [](int64_t seed, double preemption, int64_t max_blocks, bool check) {
        cuda_on_cpu::settings = {
            static_cast<uint64_t>(seed), preemption, static_cast<unsigned>(max_blocks), check};
      });
  m.def("_track_allocations(bool on) -> ()", [](bool on) { cuda_on_cpu::track_allocations(on); });
  m.def("_take_findings() -> str[]", [] { return cuda_on_cpu::take_findings(); });
  // Launches, accesses to memory and changes of the thread, since the library was loaded.
  m.def("_counters() -> int[]", [] {
    const cuda_on_cpu::Counters& counters = cuda_on_cpu::counters;
    return std::vector<int64_t>{counters.launches, counters.accesses, counters.switches};
  });
}
