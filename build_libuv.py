"""Builds pyasync._libuv, the CFFI module over the system's libuv and the shim in csrc/.

setup.py hands `ffibuilder` to CFFI's setuptools extension. The environment may set CC, as
for every extension, and

PKG_CONFIG              the pkg-config command to ask for libuv
PYASYNC_LIBUV_PREFIX    a folder whose include/ and lib/ (or lib64/) hold libuv: pkg-config is not
                        asked; a libuv.a that has no shared library beside it is linked statically
PYASYNC_SANITIZE=1      build with AddressSanitizer and UndefinedBehaviorSanitizer
PYASYNC_PORTABLE=1      build without what only Linux has, to test on Linux what other systems have
PYASYNC_WERROR=1        build with -Wall -Wextra -Werror
CFLAGS, LDFLAGS         where they speak of optimization or hardening, ours are left out
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# What Python sees of libuv and of the shim. The order counts: a type comes before its uses.
DECLARATIONS = (
    "libuv.cdef.h",
    "addresses.cdef.h",
    "loop.cdef.h",
    "streams.cdef.h",
    "sockets.cdef.h",
    "tcp.cdef.h",
    "udp.cdef.h",
    "requests.cdef.h",
    "dns.cdef.h",
    "signals.cdef.h",
    "watchers.cdef.h",
    "processes.cdef.h",
    "fs.cdef.h",
    "fs_events.cdef.h",
)

OLDEST_LIBUV = (1, 44)

LIBUV_MISSING = """\
pyasync cannot be built: {problem}.
Install it with one of
    apt install libuv1-dev pkg-config
    dnf install libuv-devel pkgconf-pkg-config
    apk add libuv-dev pkgconf
    brew install libuv pkgconf
or set PYASYNC_LIBUV_PREFIX to the folder that holds its include/ and lib/."""

COMPILER_MISSING = """\
pyasync cannot be built: {problem}.
Install what is needed with one of
    apt install gcc libc6-dev python3-dev
    dnf install gcc python3-devel
    apk add gcc musl-dev python3-dev
    xcode-select --install
or set CC to the command of a C compiler."""


def stop(problem, message=LIBUV_MISSING):
    """End the build with one message: SystemExit prints it without a traceback."""
    raise SystemExit(message.format(problem=problem))


def check_compiler():
    """Stop the build unless there are a C compiler and Python's headers."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(shlex.split(command)[0]) is None:
        stop(f"there is no C compiler ({command!r} is not found)", COMPILER_MISSING)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        stop(f"Python's own headers are missing (there is no {header})", COMPILER_MISSING)


def find_libuv():
    """Return the flags to compile and to link with libuv, or stop the build."""
    prefix = os.environ.get("PYASYNC_LIBUV_PREFIX")
    return libuv_under(Path(prefix).absolute()) if prefix else libuv_of_pkg_config()


def libuv_under(prefix):
    include = prefix / "include"
    header = include / "uv" / "version.h"
    if not header.is_file():
        stop(f"looked for libuv >= 1.44 in PYASYNC_LIBUV_PREFIX, but there is no {header}")
    numbers = dict(re.findall(r"#define UV_VERSION_(MAJOR|MINOR) +(\d+)", header.read_text()))
    check_version("{MAJOR}.{MINOR}".format(**numbers), where=prefix)
    return [f"-I{include}"], library_flags(prefix)


def library_flags(prefix):
    """Return the flags to link with the library under the prefix: a shared one, or a static one."""
    folders = [prefix / "lib", prefix / "lib64"]
    triplet = sysconfig.get_config_var("MULTIARCH")  # Debian's name of the folder
    if triplet:
        folders.append(prefix / "lib" / triplet)
    for folder in folders:
        if any(folder.glob("libuv.so*")) or any(folder.glob("libuv.*dylib")):
            # The dynamic linker knows nothing of the folder: the run path tells it.
            return [f"-L{folder}", "-luv", f"-Wl,-rpath,{folder}"]
        if (folder / "libuv.a").is_file():
            # What libuv itself needs: in glibc before 2.34 these are libraries of their own.
            needs = ["-pthread", "-ldl", "-lrt"] if sys.platform == "linux" else []
            return [str(folder / "libuv.a"), *needs]
    where = ", ".join(str(folder / "libuv.*") for folder in folders)
    return stop(f"looked for libuv >= 1.44 in PYASYNC_LIBUV_PREFIX, but there is no {where}")


def libuv_of_pkg_config():
    check_version(pkg_config("--modversion"), where="pkg-config")
    return shlex.split(pkg_config("--cflags")), shlex.split(pkg_config("--libs"))


def pkg_config(question):
    command = os.environ.get("PKG_CONFIG", "pkg-config")
    looked = f"looked for libuv >= 1.44 through {command}"
    try:
        answer = subprocess.run([command, question, "libuv"], capture_output=True, text=True)
    except OSError as error:
        stop(f"{looked}, which cannot be run ({error.strerror})")
    if answer.returncode != 0:
        stop(f"{looked}, which knows no libuv")
    return answer.stdout.strip()


def check_version(version, where):
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST_LIBUV:
        stop(f"looked for libuv >= 1.44, but {where} has {version}")


def our_flags():
    """Return our own flags to compile and to link with."""
    compile_flags, link_flags = ["-fvisibility=hidden"], []
    if sys.platform != "darwin":
        # Of a static libuv too nothing is exported, so that another one in the process is not used
        # in its place.
        link_flags.append(f"-Wl,--version-script={CSRC / 'exports.map'}")
    if os.environ.get("PYASYNC_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # Python's own flags switch assertions off.
        compile_flags += [*sanitize, "-fno-omit-frame-pointer", "-g", "-O1", "-UNDEBUG"]
        link_flags += sanitize
    else:
        hardening = hardening_flags()
        compile_flags += hardening[0]
        link_flags += hardening[1]
    if os.environ.get("PYASYNC_PORTABLE") == "1":
        # Like the BSDs' FIONWRITE, and macOS's SO_NWRITE, TIOCOUTQ counts what is not acknowledged.
        compile_flags += ["-DPA_PORTABLE", "-DFIONWRITE=TIOCOUTQ"]
    if os.environ.get("PYASYNC_WERROR") == "1":
        compile_flags += ["-Wall", "-Wextra", "-Werror"]
    return compile_flags, link_flags


def hardening_flags():
    """Return flags that turn an overrun of memory into an abort, as distributions build.

    setuptools puts these behind the user's flags, where they would win: so none is given that
    contradicts one of the user's, or of those with which Python itself was built.
    """
    user = " ".join(os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS"))
    python = sysconfig.get_config_var("CFLAGS") or ""
    compile_flags, link_flags = [], []
    if "-O" not in user:
        compile_flags.append("-O2")
    if "-O0" not in user and "_FORTIFY_SOURCE" not in user + python:
        # -U: some compilers define it by themselves, and would warn.
        compile_flags += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    if "stack-protector" not in user:
        compile_flags.append("-fstack-protector-strong")
    if sys.platform == "linux" and "-z" not in os.environ.get("LDFLAGS", ""):
        link_flags.append("-Wl,-z,relro,-z,now")
    return compile_flags, link_flags


def add_flags(extension):
    """Add all flags to a setuptools extension: only when it is compiled, as an sdist needs none."""
    check_compiler()
    for compile_flags, link_flags in (find_libuv(), our_flags()):
        extension.extra_compile_args += compile_flags
        extension.extra_link_args += link_flags


ffibuilder = FFI()
ffibuilder.cdef("\n".join((CSRC / name).read_text() for name in DECLARATIONS))
ffibuilder.set_source(
    "pyasync._libuv",
    '#include "pyasync.h"',
    # setuptools wants the paths of sources relative to setup.py.
    sources=[f"csrc/{path.name}" for path in sorted(CSRC.glob("*.c"))],
    include_dirs=["csrc"],
)

if __name__ == "__main__":  # says what a build would use, or why there can be none
    check_compiler()
    for flags in find_libuv():
        print(*flags)
