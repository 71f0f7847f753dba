"""Builds pyasync._libuv, the CFFI module over the system's libuv and the shim in csrc/.

setup.py hands `ffibuilder` to CFFI's setuptools extension. The environment may set

PKG_CONFIG              the pkg-config command to ask for libuv
PYASYNC_LIBUV_PREFIX    a folder whose include/ and lib/ hold libuv: pkg-config is not asked
PYASYNC_SANITIZE=1      build with AddressSanitizer and UndefinedBehaviorSanitizer
PYASYNC_WERROR=1        build with -Wall -Wextra -Werror
CFLAGS, LDFLAGS         where they speak of optimization or hardening, ours are left out
"""

import os
import re
import shlex
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


def stop(problem):
    """End the build with one message: SystemExit prints it without a traceback."""
    raise SystemExit(LIBUV_MISSING.format(problem=problem))


def find_libuv():
    """Return the flags to compile and to link with libuv, or stop the build."""
    prefix = os.environ.get("PYASYNC_LIBUV_PREFIX")
    return libuv_under(Path(prefix).absolute()) if prefix else libuv_of_pkg_config()


def libuv_under(prefix):
    include, lib = prefix / "include", prefix / "lib"
    header = include / "uv" / "version.h"
    if not header.is_file():
        stop(f"looked for libuv >= 1.44 in PYASYNC_LIBUV_PREFIX, but there is no {header}")
    if not any(lib.glob("libuv.*")):
        stop(f"looked for libuv >= 1.44 in PYASYNC_LIBUV_PREFIX, but there is no {lib}/libuv.*")
    numbers = dict(re.findall(r"#define UV_VERSION_(MAJOR|MINOR) +(\d+)", header.read_text()))
    check_version("{MAJOR}.{MINOR}".format(**numbers), where=prefix)
    # The dynamic linker knows nothing of the folder: the run path tells it.
    return [f"-I{include}"], [f"-L{lib}", "-luv", f"-Wl,-rpath,{lib}"]


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


def compiler_flags():
    """Return our own flags to compile and to link with."""
    if os.environ.get("PYASYNC_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # Python's own flags switch assertions off.
        compile_flags = [*sanitize, "-fno-omit-frame-pointer", "-g", "-O1", "-UNDEBUG"]
        link_flags = sanitize
    else:
        compile_flags, link_flags = hardening_flags()
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


libuv_compile_flags, libuv_link_flags = find_libuv()
our_compile_flags, our_link_flags = compiler_flags()

ffibuilder = FFI()
ffibuilder.cdef("\n".join((CSRC / name).read_text() for name in DECLARATIONS))
ffibuilder.set_source(
    "pyasync._libuv",
    '#include "pyasync.h"',
    # setuptools wants the paths of sources relative to setup.py.
    sources=[f"csrc/{path.name}" for path in sorted(CSRC.glob("*.c"))],
    depends=[f"csrc/{path.name}" for path in sorted(CSRC.glob("*.h"))] + ["build_libuv.py"],
    include_dirs=["csrc"],
    extra_compile_args=libuv_compile_flags + our_compile_flags,
    extra_link_args=libuv_link_flags + our_link_flags,
)
