"""Every kernel compiles for every dtype and architecture, within the registers and memory of `budget.json`.

The machinery is tested first on toy kernels in a temporary folder: an error must name the right file and line, and a
kernel that spills or takes a stack must be seen to do so.
"""

import os

import pytest
from kernels import resources as kr

from cusink.backends.cupy import fused_memory, launch, loader, ragged_launch
from cusink.backends.cupy.clouds import near_launch


def require_compiler():
    if kr.compiler_path() is None:
        if os.environ.get("CUSINK_REQUIRE_NVRTC", "0") not in {"", "0"}:
            pytest.fail("CUSINK_REQUIRE_NVRTC is set, and there is no libnvrtc: pip install nvidia-cuda-nvrtc-cu12")
        pytest.skip("no CUDA compiler (pip install nvidia-cuda-nvrtc-cu12)")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Write toy sources, and return the path of the last one; compiled logs stay in the temporary folder."""
    require_compiler()
    monkeypatch.setattr(kr, "CACHE", tmp_path / "cache")

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / "toys" / name.replace("_cuh", ".cuh").replace("_cu", ".cu")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return str(path)

    return write


ADD = "__device__ REAL add(REAL x, REAL y) {\n    return x + y;\n}\n"
SUM = """// uses: add.cuh
extern "C" __global__ void pair_sum(REAL* out, const REAL* x) {
    __shared__ REAL kept[64];
    kept[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = add(kept[threadIdx.x], kept[63 - threadIdx.x]);
}
"""


@pytest.mark.parametrize("arch", kr.ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float64", 8)])
def test_resources_of_a_toy(toy, dtype, width, arch):
    compiled = kr.compile_one(toy(add_cuh=ADD, sum_cu=SUM), dtype, arch)
    assert compiled.ok, compiled.log
    used = compiled.kernels["pair_sum"]
    assert (used.shared, used.stack, used.spills) == (64 * width, 0, 0)
    assert 0 < used.registers <= 32


def test_error_in_an_included_file_names_that_file_and_line(toy):
    file = toy(add_cuh=ADD.replace("x + y", "x + why"), sum_cu=SUM)
    compiled = kr.compile_one(file, "float32", 80)
    assert not compiled.ok
    assert 'toys/add.cuh(2): error: identifier "why" is undefined' in compiled.log


def test_error_after_an_included_file_keeps_its_own_line(toy):
    compiled = kr.compile_one(toy(add_cuh=ADD, sum_cu=SUM.replace("add(", "ad(")), "float32", 80)
    assert 'toys/sum.cu(6): error: identifier "ad" is undefined' in compiled.log


def test_an_edited_header_is_compiled_anew(toy):
    file = toy(add_cuh=ADD, sum_cu=SUM)
    assert kr.compile_one(file, "float32", 80).ok
    assert kr.compile_one(file, "float32", 80).ok
    assert len(list(kr.CACHE.iterdir())) == 1
    toy(add_cuh=ADD.replace("x + y", "x + why"))
    assert not kr.compile_one(file, "float32", 80).ok


# 64 live values cannot fit the 32 registers that this launch bound leaves.
SPILLING = """extern "C" __global__ void __launch_bounds__(1024, 2) spilling(REAL* out, const REAL* x) {
    REAL value[64];
    #pragma unroll
    for (int i = 0; i < 64; i++) value[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 64; i++) out[i * 1024 + threadIdx.x] = value[63 - i] * value[i];
}
"""

# An array indexed by a number that is not known at compile time has to live in local memory.
STACKED = """extern "C" __global__ void stacked(REAL* out, const REAL* x, const int* order) {
    REAL value[40];
    for (int i = 0; i < 40; i++) value[order[i]] = x[i];
    out[threadIdx.x] = value[order[threadIdx.x]];
}
"""


def test_spills_are_seen(toy):
    used = kr.compile_one(toy(spill_cu=SPILLING), "float64", 90).kernels["spilling"]
    assert used.spills > 0
    assert any("spills" in excess for excess in kr.over_budget(used, kr.allowance(used)))


def test_local_memory_is_seen(toy):
    used = kr.compile_one(toy(stack_cu=STACKED), "float32", 90).kernels["stacked"]
    assert used.stack >= 160
    assert any("stack" in excess for excess in kr.over_budget(used, kr.allowance(used)))


def test_no_budget_is_written_for_a_kernel_that_spills(toy, tmp_path, monkeypatch, capsys):
    file = toy(spill_cu=SPILLING)
    monkeypatch.setattr(loader, "kernel_files", lambda: [file])
    monkeypatch.setattr(kr, "BUDGET", tmp_path / "budget.json")
    assert kr.main(["--write-budget"]) == 1
    assert "no budget written" in capsys.readouterr().out
    assert not kr.BUDGET.exists()


@pytest.mark.parametrize(
    ("used", "words"),
    [
        ((40, 64, 0, 0), []),
        ((41, 64, 0, 0), ["registers 41 > 40"]),
        ((8, 65, 0, 0), ["shared 65 > 64"]),
        ((8, 64, 8, 4), ["stack 8 > 0", "spills 4 > 0"]),
    ],
)
def test_over_budget(used, words):
    assert kr.over_budget(kr.Resources(*used), kr.Resources(40, 64, 0, 0)) == words


@pytest.mark.parametrize(("registers", "allowed"), [(30, 32), (31, 40), (32, 40), (254, 255)])
def test_allowance_is_a_step_of_the_register_file(registers, allowed):
    assert kr.allowance(kr.Resources(registers, 10, 0, 0)) == (allowed, 10, 0, 0)


def test_budget_survives_writing_and_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(kr, "compiler_version", lambda: "0.0")
    used = kr.Resources(30, 256, 0, 0)
    compiled = {("a.cu", "float32", arch): kr.Compiled(True, "", {"k": used, "l": used}) for arch in (75, 120)}
    kr.write_budget(compiled, tmp_path / "b.json")
    expected = {("a.cu", name, "float32", arch): kr.Resources(32, 256, 0, 0) for name in "kl" for arch in (75, 120)}
    assert kr.read_budget(tmp_path / "b.json") == expected
    monkeypatch.setattr(kr, "compiler_version", lambda: "1.0")
    assert set(kr.read_budget(tmp_path / "b.json").values()) == {kr.Resources(255, 256, 0, 0)}


def test_parser_reads_all_it_needs_or_fails():
    log = (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'k' for 'sm_80'\n"
        "ptxas info    : Function properties for k\n"
        "ptxas         .     1168 bytes stack frame, 800 bytes spill stores, 2984 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 1176 bytes cumulative stack size, 256 bytes smem\n"
    )
    assert kr.parse(log) == {"k": (32, 256, 1176, 3784)}
    with pytest.raises(ValueError, match="registers"):
        kr.parse(log.replace("Used 32 registers", "Used some registers"))
    with pytest.raises(ValueError, match="stack frame"):
        kr.parse(log.replace("bytes stack frame", "bytes of stack"))


@pytest.fixture(scope="module")
def compiled():
    require_compiler()
    return kr.compile_all(loader.kernel_files())


def test_every_kernel_compiles_without_a_warning(compiled):
    bad = {job: result.log for job, result in compiled.items() if not result.ok or "warning" in result.log}
    assert not bad, "\n".join(f"{job}: {log}" for job, log in bad.items())
    assert {job[1:] for job in compiled} == {(dtype, arch) for dtype in kr.DTYPES for arch in kr.ARCHITECTURES}


def test_the_loader_lists_exactly_the_kernels_that_are_compiled(compiled):
    for (file, _, _), result in compiled.items():
        assert sorted(loader.names(file)) == sorted(result.kernels), file
        assert result.kernels, f"{file} has no kernel"


def test_every_kernel_keeps_to_its_budget(compiled):
    budget = kr.read_budget()
    used = {
        (file, name, dtype, arch): resources
        for (file, dtype, arch), result in compiled.items()
        for name, resources in result.kernels.items()
    }
    rewrite = "if this is meant: python tests/kernels/resources.py --write-budget"
    apart = sorted(used.keys() ^ budget.keys())
    assert not apart, f"kernels and budget differ in {apart}; {rewrite}"
    over = {key: excess for key, resources in used.items() if (excess := kr.over_budget(resources, budget[key]))}
    assert not over, f"{over}; {rewrite}"


def test_the_largest_block_fits_the_register_file(compiled):
    for job, result in compiled.items():
        for name, used in result.kernels.items():
            most = launch.MOST_THREADS
            if name.startswith("iterate"):  # two blocks, but for double where that would spill
                most = launch.MOST_ITERATE_THREADS * (1 if job[1] == "float64" and job[2] >= 100 else 2)
            most = 2 * fused_memory.HELD_THREADS if name in ("iterate_held", "adjoint_held") else most
            most = launch.GRID_THREADS if name in launch.GRID_PASSES else most
            most = 32 * 2 * near_launch.WARPS if name == "softmin_near" else ragged_launch.WIDE.get(name, most)
            most = launch.SPLIT_THREADS if name == "split_step" or name.endswith("_products") else most
            assert used.registers * most <= 65536, (job, name)
