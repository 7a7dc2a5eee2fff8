"""Make PyPI's torchvision work beside a CPU build of torch.

    python cpu_torchvision.py FOLDER

It is a CUDA build: its library asks for CUDA's libraries though no CPU kernel calls them. FOLDER is
filled with libraries of the same names that hold the names asked for and nothing else (gcc and
readelf are needed); with LD_LIBRARY_PATH=FOLDER the real CPU kernels load.
"""
import subprocess
import sys
import sysconfig
from pathlib import Path


def names(library):
    "(name, version, type, is it only asked for?) of a library's dynamic symbols"
    rows = [
        line.split()
        for line in subprocess.run(
            ["readelf", "-W", "--dyn-syms", library], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    ]
    return [(*r[7].partition("@")[::2], r[3], r[6] == "UND") for r in rows if len(r) > 7 and r[0][:-1].isdigit()]


def main():
    out, site = Path(sys.argv[1]), Path(sysconfig.get_paths()["purelib"])
    given = {n for f in (site / "torch/lib").glob("lib*.so*") for n, _, _, asked in names(f) if not asked}
    lacking = {
        (n, v, kind)
        for n, v, kind, asked in names(site / "torchvision/_C.so")
        if asked and n not in given and "cuda" in n + v
    }
    runtime = next(v for _, v, _ in lacking if "cudart" in v).lstrip("@")
    out.mkdir(parents=True, exist_ok=True)
    for soname, mine in (
        (runtime, lambda v: v), ("libc10_cuda.so", lambda v: not v), ("libtorch_cuda.so", lambda v: False)
    ):
        code = ".section .note.GNU-stack,\"\",@progbits\n"
        for n, v, kind in sorted(lacking):
            if not mine(v): continue
            if kind == "OBJECT": code += f".data\n.globl {n}\n.type {n},@object\n.size {n},64\n{n}: .zero 64\n"
            else: code += f".text\n.globl {n}\n.type {n},@function\n{n}: xor %eax,%eax\nret\n"
        (out / "names.s").write_text(code)
        (out / "version").write_text(f"{runtime} {{ global: *; }};\n")
        extra = [f"-Wl,--version-script={out / 'version'}"] if soname == runtime else []
        subprocess.run(
            ["gcc", "-shared", "-nostdlib", "-o", out / soname, out / "names.s", f"-Wl,-soname,{soname}", *extra],
            check=True)


if __name__ == "__main__":
    main()
