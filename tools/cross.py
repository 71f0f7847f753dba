"""Compile the C for systems that are not here: see `make cross`.

    python tools/cross.py LIBUV_SOURCE [TARGET]...

LIBUV_SOURCE is the folder of libuv's sources, whose headers are used. A TARGET is one of zig's; by
default all of TARGETS. Every warning is an error. Nothing is linked, and nothing runs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"

TARGETS = [
    "aarch64-macos",
    "x86_64-freebsd",
    "x86_64-netbsd",
    "x86_64-openbsd",
    "x86_64-linux-musl",
    "aarch64-linux-gnu.2.17",
]


def compile_for(target, include):
    """Compile all files for the target; return whether that has worked."""
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    flags = ["-c", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
    with tempfile.TemporaryDirectory() as folder:
        # All in one call, because zig takes seconds to begin.
        done = subprocess.run([*compiler, *flags, *sorted(CSRC.glob("*.c"))], cwd=folder)
    print(f"{target}: {'compiles' if done.returncode == 0 else 'FAILED'}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1], "include", "uv.h").is_file():
        sys.exit(__doc__)
    include = Path(sys.argv[1], "include").resolve()
    failed = [name for name in sys.argv[2:] or TARGETS if not compile_for(name, include)]
    sys.exit(bool(failed))
