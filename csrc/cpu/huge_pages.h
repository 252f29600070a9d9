// Large results of CPU operators come from the system as fresh memory at every call, and touching it page by page takes
// as long as computing it. Asked for in huge pages, where the system leaves the choice to programs, it is nearly free.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detrx::cpu {

// For a tensor just allocated and not written to yet.
inline const at::Tensor& in_huge_pages(const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t size = uintptr_t(1) << 21;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t begin = (data + size - 1) / size * size, end = (data + tensor.nbytes()) / size * size;
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a hint: an error changes nothing
  }
#endif
  return tensor;
}

}  // namespace detrx::cpu
