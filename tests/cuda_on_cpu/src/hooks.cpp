// What the compiler calls in code that it instruments with -fsanitize=thread,alignment,bounds,...: the runtime libraries of
// its sanitizers are not linked.
#include <cstdint>
#include <cstring>

#include "execution.h"
#include "findings.h"

using cuda_on_cpu::AccessKind;
using cuda_on_cpu::on_access;

extern "C" {

#define HOOK(name, bytes, alignment, kind)                                              \
  void __tsan_##name(void* address) {                                                   \
    on_access(address, bytes, alignment, AccessKind::kind, __builtin_return_address(0)); \
  }
#define HOOKS(prefix, bytes, alignment)             \
  HOOK(prefix##read##bytes, bytes, alignment, kRead) \
  HOOK(prefix##write##bytes, bytes, alignment, kWrite)
// Types of 16 bytes may need an alignment of 8 only; whether they need more, -fsanitize=alignment knows.
HOOKS(, 1, 1) HOOKS(, 2, 2) HOOKS(, 4, 4) HOOKS(, 8, 8) HOOKS(, 16, 8)
HOOKS(unaligned_, 2, 1) HOOKS(unaligned_, 4, 1) HOOKS(unaligned_, 8, 1) HOOKS(unaligned_, 16, 1)
#undef HOOKS
#undef HOOK

void __tsan_read_range(void* address, size_t bytes) {
  on_access(address, bytes, 1, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  on_access(address, bytes, 1, AccessKind::kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomic operations of the host, in PyTorch's headers.
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#define ATOMICS(bits, type)                                                                                           \
  type __tsan_atomic##bits##_load(const volatile type* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }       \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }       \
  type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) {                                                \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                               \
  }                                                                                                                   \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                                               \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                                   \
  type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) {                                               \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                                   \
  type __tsan_atomic##bits##_fetch_and(volatile type* p, type v, int) {                                               \
    return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                                   \
  type __tsan_atomic##bits##_fetch_or(volatile type* p, type v, int) {                                                \
    return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                                   \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type v, int, int) {             \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
  }                                                                                                                   \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v, int, int) {               \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }                                                                                                                   \
  type __tsan_atomic##bits##_compare_exchange_val(volatile type* p, type expected, type v, int, int) {                \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                          \
    return expected;                                                                                                  \
  }
ATOMICS(8, uint8_t) ATOMICS(16, uint16_t) ATOMICS(32, uint32_t) ATOMICS(64, uint64_t)
#undef ATOMICS

#define UNDEFINED(name, what, ...)                                                                \
  void __ubsan_handle_##name(__VA_ARGS__) {                                                       \
    const cuda_on_cpu::Unwatched unwatched;                                                       \
    cuda_on_cpu::add_finding(what " by " + cuda_on_cpu::here(__builtin_return_address(0)));       \
  }
UNDEFINED(type_mismatch_v1, "misaligned access", void*, void*)
UNDEFINED(out_of_bounds, "index out of the bounds of an array", void*, void*)
UNDEFINED(add_overflow, "overflow of signed integers", void*, void*, void*)
UNDEFINED(sub_overflow, "overflow of signed integers", void*, void*, void*)
UNDEFINED(mul_overflow, "overflow of signed integers", void*, void*, void*)
UNDEFINED(negate_overflow, "overflow of signed integers", void*, void*)
UNDEFINED(divrem_overflow, "division by zero", void*, void*, void*)
UNDEFINED(shift_out_of_bounds, "shift by more bits than there are", void*, void*, void*)
UNDEFINED(float_cast_overflow, "conversion of a number that the integer type does not hold", void*, void*)
#undef UNDEFINED

// Copies and fills that the compiler left to the library; copies.h sends kernels here.
void* cuda_on_cpu_memcpy(void* target, const void* source, size_t bytes) {
  if (bytes > 0) {
    on_access(source, bytes, 1, AccessKind::kRead, __builtin_return_address(0));
    on_access(target, bytes, 1, AccessKind::kWrite, __builtin_return_address(0));
  }
  return std::memcpy(target, source, bytes);
}
void* cuda_on_cpu_memmove(void* target, const void* source, size_t bytes) {
  if (bytes > 0) {
    on_access(source, bytes, 1, AccessKind::kRead, __builtin_return_address(0));
    on_access(target, bytes, 1, AccessKind::kWrite, __builtin_return_address(0));
  }
  return std::memmove(target, source, bytes);
}
void* cuda_on_cpu_memset(void* target, int value, size_t bytes) {
  if (bytes > 0) {
    on_access(target, bytes, 1, AccessKind::kWrite, __builtin_return_address(0));
  }
  return std::memset(target, value, bytes);
}

}  // extern "C"
