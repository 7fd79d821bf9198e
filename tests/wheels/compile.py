"""Compile CUDA sources as a real CuPy does, without a driver. Runs by itself, with that CuPy on the path.

Reads ``[[source, options, compute capability], ...]`` and prints ``[[error, log, binary in base 64], ...]``.
"""

import base64
import ctypes
import io
import json
import sys


def compiled(compiler, source, options, capability):
    """Return an error or "", the compiler's log, and the binary."""
    assert capability <= int(compiler._get_max_compute_capability()), "this CuPy would make PTX, not a binary"
    # CuPy keeps the answer for each device, and asks the driver for the number of the current one.
    compiler._get_arch_for_options_for_nvrtc = lambda arch: (f"-arch=sm_{arch}", "cubin")
    log = io.StringIO()
    try:
        binary, _ = compiler.compile_using_nvrtc(
            source, (*options, "-ftz=true", "--ptxas-options=-v"), str(capability), "kernel.cu", None, log, True
        )
    except compiler.CompileException as error:
        return str(error), log.getvalue(), ""
    return "", log.getvalue(), base64.b64encode(binary).decode()


if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # the compiler that CuPy is to find
    from cupy.cuda import compiler

    answers = [compiled(compiler, *job) for job in json.load(sys.stdin)]
    print(json.dumps({"version": list(compiler._get_nvrtc_version()), "compiled": answers}))
