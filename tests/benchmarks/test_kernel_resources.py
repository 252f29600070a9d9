"""Counting instructions: of a disassembly written by hand, and of a kernel that nvcc compiles."""

import os
import shutil

import pytest

SASS = """
	.section	.text._Z1fPf,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=31"
	.align	128
_Z1fPf:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
        /*0020*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
.L_x_2:
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   BRA.DIV UR5, `(.L_x_9) ;
        /*0050*/                   REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4 ;
.L_x_3:
        /*0060*/               @P1 BRA `(.L_x_4) ;
        /*0070*/                   FADD R4, R4, R5 ;
.L_x_4:
        /*0080*/              @!P0 BRA `(.L_x_2) ;
        /*0090*/                   SHFL.BFLY PT, R7, R6, 0x8, 0x1f ;
        /*00a0*/                   BRA P2, `(.L_x_1) ;
        /*00b0*/                   EXIT ;
.L_x_9:
        /*00c0*/                   WARPSYNC.COLLECTIVE R9, `(.L_x_10) ;
.L_x_10:
        /*00d0*/                   BRA `(.L_x_3) ;
.L_x_11:
        /*00e0*/                   BRA `(.L_x_11);
        /*00f0*/                   NOP;
	.section	.nv.info,"",@"SHT_CUDA_INFO"
	.section	.text._Z1gPf,"ax",@progbits
        /*0000*/                   EXIT ;
"""


@pytest.fixture
def modules(request, monkeypatch):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import kernel_resources
    import sass

    return kernel_resources, sass


def test_loops_are_found_by_what_dominates(modules):
    _, sass = modules
    functions = sass.parse(SASS)
    assert list(functions) == ["_Z1fPf", "_Z1gPf"]
    found = sorted(sass.loops(functions["_Z1fPf"]), key=len)
    # Neither the jump back out of the path of divergent warps nor the trap behind the kernel is a loop of its own.
    assert found == [set(range(3, 9)), set(range(2, 11))]
    assert sass.innermost_loops(functions["_Z1fPf"]) == [set(range(3, 9))]
    assert sass.loops(functions["_Z1gPf"]) == []


def test_the_hottest_loop(modules):
    resources, sass = modules
    loop = resources.hottest_loop(sass.parse(SASS)["_Z1fPf"])
    assert (loop.instructions, loop.global_loads) == (6, {"128": 1})
    assert loop.reductions == {"REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU": 1}
    assert loop.shuffles == 0


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("void a::(anonymous namespace)::f<float, c10::BFloat16, (int)32>(b::C<float, 2>)", "f float32 bfloat16 32"),
        ("a::(anonymous namespace)::sum_kernel(long*, a::D)", "sum_kernel"),
        ("void g<uint4, a::Pack<c10::Half, 8>, (bool)1>(uint4 const*)", "g uint4 Pack<Half, 8> 1"),
    ],
)
def test_readable_names(modules, signature, expected):
    name, arguments = modules[0].readable(signature)
    assert " ".join([name, *arguments]) == expected


def test_a_compiled_kernel(modules, tmp_path):
    resources, _ = modules
    if not (shutil.which("nvcc") or os.environ.get("CUDA_HOME")):
        pytest.skip("no nvcc")
    source = tmp_path / "family" / "kernel.cu"
    source.parent.mkdir()
    source.write_text("""
        template <typename T> __global__ void sum(const T* x, T* y, int n) {
          __shared__ T shared[64];
          T total = 0;
          #pragma unroll 1
          for (int i = threadIdx.x; i < n; i += 64) total += x[i];
          shared[threadIdx.x] = total;
          __syncthreads();
          atomicAdd(y, shared[63 - threadIdx.x]);
        }
        template __global__ void sum<float>(const float*, float*, int);
        template __global__ void sum<double>(const double*, double*, int);
    """)
    float32, float64 = resources.inspect(source, "90")
    assert [float32.name, float64.name] == ["family sum<float32>", "family sum<float64>"]
    assert (float32.loop.global_loads, float64.loop.global_loads) == ({"32": 1}, {"64": 1})
    assert (float32.static_shared, float64.static_shared) == (256, 512)
    assert sum(float32.barriers.values()) == 1 and sum(float32.reductions.values()) == 1
    assert 4 <= float32.loop.instructions < float32.instructions and float32.registers >= 8
    assert float32.stack == float32.spill_stores == float32.spill_loads == 0
