"""CUDA sources as C++: what is rewritten, what stays, and what is refused with a reason."""

import re
import subprocess

import pytest

from tests.cuda_on_cpu.build import HERE, KERNEL_FLAGS, compiler, unavailable
from tests.cuda_on_cpu.rewrite import RewriteError, closure, rewrite, torch_includes


@pytest.mark.parametrize(
    "source,expected",
    [
        ("kernel<T, 3><<<a, b>>>(x);", "kernel<T, 3>->*::cuda_on_cpu::Launch(a, b)(x);"),
        ("k<A<B<int>>><<<f<g<1>>(n), dim3(2)>>>();", "k<A<B<int>>>->*::cuda_on_cpu::Launch(f<g<1>>(n), dim3(2))();"),
        ("kernel\n  <<<a,\n b>>>(x);", "kernel\n  ->*::cuda_on_cpu::Launch(a,\n b)(x);"),
        ('// <<<\nauto x = "<<<"; /* <<< */', '// <<<\nauto x = "<<<"; /* <<< */'),
        (
            "extern __shared__ __align__(16) char memory[];",
            "char* memory = reinterpret_cast<char*>(::cuda_on_cpu::dynamic_shared());",
        ),
        (
            "extern __shared__ unsigned long words[];",
            "unsigned long* words = reinterpret_cast<unsigned long*>(::cuda_on_cpu::dynamic_shared());",
        ),
        ("__shared__ int counts[kWarps][4];", "auto& counts = ::cuda_on_cpu::shared<int[kWarps][4]>(KEY);"),
        ("static __shared__ typename A<T, 2>::B b;", "auto& b = ::cuda_on_cpu::shared<typename A<T, 2>::B>(KEY);"),
        ("__shared__ alignas(16) float\n  x[2];", "auto& x = ::cuda_on_cpu::shared<float[2], 16>(KEY);\n"),
        (
            "__global__ void __launch_bounds__(kThreads, 2)\nkernel(int (&x)[2], A a) {\n}",
            "__global__ void __launch_bounds__(kThreads, 2)\nkernel(int (&x)[2], A a) {"
            " ::cuda_on_cpu::check_launch_bounds(CUDA_ON_CPU_FIRST(kThreads, 2));\n}",
        ),
        ("__global__ __launch_bounds__(f(2)) void kernel();", "__global__ __launch_bounds__(f(2)) void kernel();"),
        ("TORCH_LIBRARY_IMPL(detrx, CUDA, m) {}", "TORCH_LIBRARY_IMPL(detrx_emulated, CPU, m) {}"),
        ("TORCH_LIBRARY_FRAGMENT(detrx, m) {}", "TORCH_LIBRARY_FRAGMENT(detrx_emulated, m) {}"),
        ("if (x.is_cpu() || y.is_cuda())", "if (x.is_cuda() || y.is_cpu())"),
        (
            '#include "a.h"\nint kernel() { return 1 << 3 >> 2; }',
            '#include "a.h"\nint kernel() { return 1 << 3 >> 2; }',
        ),
    ],
)
def test_rewritten(source, expected):
    key = "[]() -> const void* { static const char key = 0; return &key; }()"
    result = rewrite(source, "a.cu")
    assert result.replace(key, "KEY") == expected
    assert result.count("\n") == source.count("\n")


@pytest.mark.parametrize(
    "source,message",
    [
        ("\nkernel<<<1, 2(x);", "a.cu:2: not emulated: <<< without >>>"),
        ("extern __shared__ int x;", "dynamic shared memory that is no array of unknown size"),
        ("extern __shared__ __align__(128) char x[];", "dynamic shared memory aligned to 128"),
        ("__shared__ int a, b;", "a shared variable that is not declared as"),
        ("__shared__ int a = 0;", "a shared variable that is not declared as"),
        ("void __launch_bounds__(2) (*x)();", "__launch_bounds__ that is not between"),
        ("namespace cg = cooperative_groups;", "cooperative groups"),
        ("#include <cooperative_groups.h>", "cooperative groups"),
        ("cudaLaunchKernelEx(&config, kernel);", "cudaLaunchKernel; launch with <<<...>>>"),
        ("at::empty(1, at::kCUDA);", "naming the device"),
        ("#include <ATen/cuda/CUDAContext.h>", "headers of ATen/cuda"),
        ("__device__ int counter;", "variables in global memory"),
    ],
)
def test_refused(source, message):
    with pytest.raises(RewriteError, match=re.escape(message)):
        rewrite(source, "a.cu")


def test_headers(tmp_path):
    (tmp_path / "family").mkdir()
    (tmp_path / "common.h").write_text("#include <ATen/core/Tensor.h>\n")
    (tmp_path / "family" / "a.cuh").write_text('#include "../common.h"\n#include <c10/cuda/CUDAGuard.h>\n')
    main = tmp_path / "family" / "main.cu"
    main.write_text('#include "a.cuh"\n  #  include "../common.h"\n#include <vector>\n')
    assert [path.name for path in closure(main)] == ["main.cu", "a.cuh", "common.h"]
    assert [name for path in closure(main) for name in torch_includes(path.read_text())] == ["ATen/core/Tensor.h"]


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
@pytest.mark.parametrize(
    "code,message",
    [
        ("__threadfence();", "not emulated: blocks run one after the other"),
        ("x[0] = __activemask();", "not emulated: the lanes that happen to be active"),
        ('asm volatile("mov.u32 %0, 1;" : "=r"(x[0]));', "inline_ptx_is_not_emulated"),
        ("atomicAdd(reinterpret_cast<long*>(x), 1L);", "invalid conversion from .*long int.*"),
        ("__shfl_sync(0xffffffffu, make_float4(0, 0, 0, 0), 0);", "not emulated: warp operations on more than 8 bytes"),
        ("__nanosleep(3);", "not emulated: time"),
    ],
)
def test_refused_by_the_compiler(code, message):
    source = f'#include "cuda_on_cpu/kernel.h"\n__global__ void kernel(int* x) {{ {code} }}\n'
    command = [*compiler(), *KERNEL_FLAGS, f"-I{HERE / 'include'}", "-x", "c++", "-S", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode != 0 and re.search(message, done.stderr), done.stderr
