// The extension module `detrx._C`: importing it registers the operators of torch.ops.detrx.

#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "cpu/isa.h"

namespace {

// What was compiled in, as "key=value" pairs separated by ';', for detrx.collect_env.
std::string build_info() {
#if defined(__clang__)
  std::string info = "compiler=" __VERSION__;  // begins with the name
#else
  std::string info = "compiler=gcc " __VERSION__;
#endif
  info += ";torch=" + std::string(TORCH_VERSION);
#ifdef DETRX_CUDA_ARCHS
  info += std::string(";cuda_archs=") + DETRX_CUDA_ARCHS;
#endif
  info += std::string(";cpu_isa=") + detrx::cpu::isa_name(detrx::cpu::isa());
  return info;
}

}  // namespace

TORCH_LIBRARY(detrx, m) {
  m.def("_build_info() -> str", &build_info);
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "Compiled operators of detrx.", -1, nullptr};
  return PyModule_Create(&definition);
}
