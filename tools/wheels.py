"""Build wheels for every Linux, with a static libuv, by zig's C compiler: see `make wheel`.

    python tools/wheels.py LIBUV_SOURCE [TARGET]...

LIBUV_SOURCE is the folder of libuv's sources. A TARGET is one of zig's with its glibc, as
`x86_64-linux-gnu.2.17`; without any, all of TARGETS are built. The wheels go to dist/.

The limited API makes one wheel for all CPythons, so the one that runs this builds for the others,
and for other processors: their headers do not differ where it counts.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

#: zig's target, and the platform in the wheel's tag.
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


def build_wheel(prefix, compiler, platform):
    """Build the wheel of this Python for the platform, with the libuv under the prefix."""
    command = " ".join(compiler)
    environment = {
        **os.environ,
        "PYASYNC_LIBUV_PREFIX": str(prefix),
        "CC": command,
        "LDSHARED": f"{command} -shared",
        # The same bytes wherever the tree lies, and nothing that only debuggers read.
        "CFLAGS": f"-O2 -g0 -ffile-prefix-map={ROOT}=. -ffile-prefix-map={prefix}=libuv",
        "LDFLAGS": "-s -Wl,--build-id=none",
        # A zip knows no time before 1980.
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "315532800"),
    }
    build = ["build", "--build-base", str(prefix / "build")]
    wheel = ["bdist_wheel", "--plat-name", platform, "--dist-dir", str(DIST)]
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *build, *wheel],
        cwd=ROOT,
        env=environment,
        check=True,
    )


def main(source, *targets):
    for target in targets or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder, "libuv")
            compiler = zig("cc", "-target", target)
            build_libuv(Path(source).resolve(), prefix, compiler)
            build_wheel(prefix, compiler, TARGETS[target])


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1], "include", "uv.h").is_file():
        sys.exit(__doc__)
    main(*sys.argv[1:])
