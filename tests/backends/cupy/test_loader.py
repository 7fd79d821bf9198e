"""The kernel loader: what is compiled, when it is compiled again, and what is said when it cannot be.

CuPy's place is taken by a stand-in with the two properties that matter here: it compiles late, and it keeps binaries
by source text and options, as CuPy's disk cache does. The last tests use the real CuPy, up to where it needs a driver.
"""

import ast
import ctypes
import hashlib
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from kernels import resources

import cusink
from cusink.backends.cupy import loader

PACKAGE = Path(loader.__file__).parent


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Make a temporary folder the folder of kernels; call it with file texts to write them."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    monkeypatch.setattr(loader, "folder", lambda: folder)

    def write(**texts):
        for name, text in texts.items():
            (folder / name.replace("_cuh", ".cuh").replace("_cu", ".cu")).write_text(text)
        return folder

    forget()
    yield write
    forget()


def forget():
    """Do what a new process does: start with nothing compiled."""
    loader._function.cache_clear()
    loader._module.cache_clear()


class CompileError(Exception):
    """As CuPy's own: its text is the compiler's log."""


class StandIn(types.ModuleType):
    """As much of CuPy as the loader uses. `disk` outlives a 'process', as CuPy's cache does."""

    def __init__(self):
        super().__init__("cupy")
        self.disk, self.compilations, self.device, self.log = {}, 0, 0, ""
        outer = self

        class RawModule:
            def __init__(self, *, code, options, backend):
                self.code, self.options = code, options
                assert backend == "nvrtc"

            def get_function(self, name):
                key = hashlib.sha256(repr((self.code, self.options)).encode()).hexdigest()
                if outer.log:
                    raise CompileError(outer.log)
                if key not in outer.disk:
                    outer.compilations += 1
                    outer.disk[key] = (self.code, self.options)
                return types.SimpleNamespace(name=name, binary=outer.disk[key], device=outer.device)

        self.RawModule = RawModule
        self.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(getDevice=lambda: outer.device),
            compiler=types.SimpleNamespace(CompileException=CompileError),
            Device=lambda index: types.SimpleNamespace(compute_capability=("75", "90")[index]),
        )


@pytest.fixture
def cupy(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    return stand_in


ADD = "__device__ REAL add(REAL x, REAL y) { return x + y; }\n"
SUM = '// uses: add.cuh\nextern "C" __global__ void pair_sum(REAL* out) { out[0] = add(out[0], out[1]); }\n'


def test_sources_are_found():
    files = loader.kernel_files()
    assert files == sorted(files)
    for file in files:
        text = loader.source(file)
        assert text.endswith("\n")
        assert f'#line 1 "{loader.folder().name}/{file}"\n' in text
        assert loader.names(file)


def test_our_files_never_include_one_another():
    for path in sorted(loader.folder().glob("*.cu*")):
        assert '#include "' not in path.read_text(), f"{path.name}: CuPy's cache does not look into included files"


@pytest.mark.parametrize("inside", [True, False], ids=["wheel", "checkout"])
def test_folder_of_a_wheel_and_of_a_checkout(tmp_path, monkeypatch, inside):
    package = tmp_path / "site" / "cusink"
    kernels = package / "kernels" if inside else package.parent / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "one.cu").write_text("")
    if inside:  # a stranger's folder beside the installed package
        (package.parent / "kernels").mkdir()
        (package.parent / "kernels" / "stranger.cu").write_text("")
    monkeypatch.setattr(loader, "__file__", str(package / "backends" / "cupy" / "loader.py"))
    assert loader.folder.__wrapped__() == kernels


def test_an_installation_without_sources_says_so(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(loader, "__file__", str(tmp_path / "cusink" / "backends" / "cupy" / "loader.py"))
    with pytest.raises(FileNotFoundError, match=r"no CUDA sources \(kernels/\*\.cu\); reinstall"):
        loader.folder.__wrapped__()


def test_used_files_come_once_and_before_their_users(kernels):
    kernels(
        a_cuh="// A\n",
        b_cuh="// uses: a.cuh\n// B\n",
        c_cuh="// uses: a.cuh\n// C",
        d_cu="// uses: b.cuh, c.cuh\n// D\n",
    )
    assert loader.source("d.cu") == (
        '#line 1 "kernels/a.cuh"\n// A\n'
        '#line 1 "kernels/b.cuh"\n// uses: a.cuh\n// B\n'
        '#line 1 "kernels/c.cuh"\n// uses: a.cuh\n// C\n'
        '#line 1 "kernels/d.cu"\n// uses: b.cuh, c.cuh\n// D\n'
    )
    assert loader.kernel_files() == ["d.cu"]


def test_a_file_elsewhere_is_read_with_what_lies_beside_it(tmp_path):
    (tmp_path / "x.cuh").write_text("// X\n")
    (tmp_path / "y.cu").write_text("// uses: x.cuh\n")
    name = tmp_path.name
    assert (
        loader.source(str(tmp_path / "y.cu"))
        == f'#line 1 "{name}/x.cuh"\n// X\n#line 1 "{name}/y.cu"\n// uses: x.cuh\n'
    )


def test_a_circle_of_uses_is_refused(kernels):
    kernels(a_cuh="// uses: b.cuh\n", b_cuh="// uses: a.cuh\n", c_cu="// uses: a.cuh\n")
    with pytest.raises(ValueError, match=r"circle: c\.cu -> a\.cuh -> b\.cuh -> a\.cuh"):
        loader.source("c.cu")


def test_a_missing_used_file_is_named_with_its_user(kernels):
    kernels(sum_cu=SUM)
    with pytest.raises(FileNotFoundError, match=r"add\.cuh \(needed as sum\.cu -> add\.cuh\); the folder has sum\.cu"):
        loader.source("sum.cu")


def test_names_are_those_of_the_kernels_alone(kernels):
    kernels(
        k_cu='// extern "C" __global__ void in_a_comment(int n) {}\n'
        "/* __global__ void in_another(int n) {} */\n"
        "__device__ void helper(int n) {}\n"
        'extern "C" __global__ void first(int n) {}\n'
        'extern "C" __global__ void __launch_bounds__(256, 2)\nsecond(int n) { first_call(n); }\n'
        'extern "C" __global__ __launch_bounds__(32 * (WARPS)) void third(int n) {}\n'
    )
    assert loader.names("k.cu") == ["first", "second", "third"]


@pytest.mark.parametrize(("dtype", "real"), [(np.float32, "float"), ("float64", "double"), (np.dtype("f8"), "double")])
def test_options(dtype, real):
    assert loader.options(dtype) == ("-std=c++17", f"-DREAL={real}")


@pytest.mark.parametrize("dtype", ["float16", "int64", ">f4"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="kernels exist for float32 and float64; got"):
        loader.options(dtype)


def test_compiled_once_per_file_dtype_and_device(kernels, cupy):
    kernels(add_cuh=ADD, sum_cu=SUM)
    single = loader.function("sum.cu", "pair_sum", np.float32)
    assert loader.function("sum.cu", "pair_sum", "float32") is single
    assert cupy.compilations == 1
    double = loader.function("sum.cu", "pair_sum", np.float64)
    assert "-DREAL=double" in double.binary[1]
    assert cupy.compilations == 2
    cupy.device = 1
    assert loader.function("sum.cu", "pair_sum", np.float32).device == 1
    cupy.device = 0
    assert loader.function("sum.cu", "pair_sum", np.float32) is single


def test_two_kernels_of_a_file_share_a_compilation(kernels, cupy):
    kernels(add_cuh=ADD, sum_cu=SUM + SUM.replace("pair_sum", "other_sum"))
    loader.function("sum.cu", "pair_sum", np.float32)
    loader.function("sum.cu", "other_sum", np.float32)
    assert loader._module.cache_info().currsize == 1
    assert cupy.compilations == 1


def test_an_unknown_kernel_is_refused_with_the_known_ones(kernels, cupy):
    kernels(add_cuh=ADD, sum_cu=SUM)
    with pytest.raises(KeyError, match=r"sum\.cu has no kernel 'pair_sun'; it has pair_sum"):
        loader.function("sum.cu", "pair_sun", np.float32)


def test_a_changed_header_never_runs_its_old_binary(kernels, cupy):
    kernels(add_cuh=ADD, sum_cu=SUM)
    before = loader.function("sum.cu", "pair_sum", np.float32)
    forget()
    assert loader.function("sum.cu", "pair_sum", np.float32).binary is before.binary  # the cache is one, and is used
    kernels(add_cuh=ADD.replace("x + y", "x - y"))
    forget()
    after = loader.function("sum.cu", "pair_sum", np.float32)
    assert "x - y" in after.binary[0]
    assert "x + y" not in after.binary[0]
    assert cupy.compilations == 2


@pytest.mark.parametrize(("device", "arch"), [(0, "sm_75"), (1, "sm_90")])
def test_compile_errors_name_everything_on_one_line(kernels, cupy, device, arch):
    kernels(add_cuh=ADD, sum_cu=SUM)
    cupy.device = device
    cupy.log = 'kernels/add.cuh(1): error: identifier "why" is undefined\n  return x + why;\n\n1 error detected\n'
    with pytest.raises(loader.KernelCompileError) as caught:
        loader.function("sum.cu", "pair_sum", np.float32)
    assert str(caught.value) == (
        f"kernel 'pair_sum' of sum.cu (float32, {arch}) cannot be built: "
        'kernels/add.cuh(1): error: identifier "why" is undefined'
    )
    assert isinstance(caught.value.__cause__, CompileError)
    cupy.log = ""
    assert loader.function("sum.cu", "pair_sum", np.float32).name == "pair_sum"  # a failure is not kept


def test_a_missing_compiler_says_what_to_install(kernels, cupy):
    kernels(add_cuh=ADD, sum_cu=SUM)
    cupy.log = "CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object file"
    with pytest.raises(loader.KernelCompileError, match=r"libnvrtc\.so\.12.*pip install 'cupy-cuda12x\[ctk\]'"):
        loader.function("sum.cu", "pair_sum", np.float32)


def test_reading_sources_does_not_import_cupy():
    read = "import sys; from cusink.backends.cupy import loader as k; [k.names(f) for f in k.kernel_files()]"
    code = f"{read}; print('cupy' in sys.modules)"
    path = str(Path(cusink.__path__[0]).parent)
    run = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_loader_alone_makes_kernels():
    makers = {"RawModule", "RawKernel", "ElementwiseKernel", "ReductionKernel", "fuse", "compile_with_cache"}
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in makers)
        or (isinstance(node, ast.ImportFrom) and makers & {name.name for name in node.names})
    }
    assert users == {"loader.py"}


def test_a_cache_that_cannot_be_written_says_what_to_set(kernels, cupy, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied", "/home/cache")

    kernels(add_cuh=ADD, sum_cu=SUM)
    with monkeypatch.context() as patch:
        patch.setattr(cupy.RawModule, "get_function", refuse)
        with pytest.raises(loader.KernelCompileError, match=r"Permission denied: '/home/cache'\. Set CUPY_CACHE_DIR"):
            loader.function("sum.cu", "pair_sum", np.float32)
    assert loader.function("sum.cu", "pair_sum", np.float32).name == "pair_sum"  # a failure is not kept


@pytest.fixture
def cupy_disk_cache(tmp_path, monkeypatch):
    """Return a function from source to binary: the compiler and disk cache of the real CuPy, without a driver."""
    pytest.importorskip("cupy", exc_type=ImportError)
    from cupy.cuda import compiler

    if path := resources.compiler_path():
        ctypes.CDLL(path)  # CuPy 13 does not look into the compiler's wheel, but takes a library that is already loaded
    try:
        compiler._get_nvrtc_version()
    except Exception as error:  # CuPy's error for a missing library differs between its versions
        pytest.skip(f"CuPy finds no CUDA compiler: {error}")
    loaded, compiled = [], []

    class Module:
        def load(self, binary):
            loaded.append(bytes(binary))

        def _set_mapping(self, mapping):
            pass

    real_compile = compiler._NVRTCProgram.compile

    def counted(program, *args, **kwargs):
        compiled.append(program)
        return real_compile(program, *args, **kwargs)

    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    if hasattr(compiler, "_kernel_cache_backend"):  # CuPy 14 reads the variable once, at its import
        monkeypatch.setattr(compiler, "_kernel_cache_backend", type(compiler._kernel_cache_backend)())
    monkeypatch.setattr(compiler.function, "Module", Module)
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch=None: ("-arch=sm_80", "cubin"))
    monkeypatch.setattr(compiler, "_preprocess", lambda *args: "")
    monkeypatch.setattr(compiler._NVRTCProgram, "compile", counted)

    def binary(source, options):
        compiler._compile_module_with_cache(source, options, arch="80")
        return loaded[-1], len(compiled)

    return binary


def test_cupy_itself_keeps_nothing_stale(kernels, cupy_disk_cache):
    def compiled():
        return cupy_disk_cache(loader.source("sum.cu"), loader.options(np.float32))

    kernels(add_cuh=ADD, sum_cu=SUM)
    plus, first = compiled()
    assert compiled() == (plus, first)  # from the disk
    kernels(add_cuh=ADD.replace("x + y", "x - y"))
    minus, second = compiled()
    assert minus != plus
    assert second == first + 1
    kernels(add_cuh=ADD)
    assert compiled() == (plus, second)


def test_cupy_would_run_a_stale_binary_if_files_were_included(kernels, cupy_disk_cache):
    """The reason for the loader's concatenation; should this fail one day, CuPy looks into included files."""
    text = SUM.replace("// uses: add.cuh", '#include "add.cuh"')
    options = (*loader.options(np.float32), f"-I{kernels(add_cuh=ADD)}")
    plus, first = cupy_disk_cache(text, options)
    kernels(add_cuh=ADD.replace("x + y", "x - y"))
    assert cupy_disk_cache(text, options) == (plus, first)


def test_a_binary_that_was_damaged_in_cupy_s_cache_is_built_again(kernels, cupy_disk_cache, tmp_path):
    def compiled():
        return cupy_disk_cache(loader.source("sum.cu"), loader.options(np.float32))

    kernels(add_cuh=ADD, sum_cu=SUM)
    binary, count = compiled()
    for damage in (lambda data: data[:-8] + bytes(8), lambda data: data[:40], lambda data: b""):
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        count += 1
        assert compiled() == (binary, count)
