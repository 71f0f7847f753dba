"""Builds pyasync; pyproject.toml has all but what depends on the machine."""

import os
import re
import sys
import sysconfig
import tempfile

# pip says so by itself only where it can build: the oldest setuptools that can knows no 3.8.
if sys.version_info < (3, 9):  # noqa: UP036
    raise SystemExit("pyasync needs Python 3.9 or newer; this is Python " + sys.version.split()[0])

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildExtension(build_ext):
    """Looks for libuv only here, as an sdist needs none, and compiles always.

    setuptools would take what is in build/ although the environment, or libuv, has changed since.
    """

    def run(self):
        from build_libuv import add_flags

        self.force = True
        for extension in self.extensions:
            add_flags(extension)
        super().run()

    def get_ext_filename(self, fullname):
        # With the platform in its name, as CPython 3.15 has it, 3.13 and older would not find it.
        return re.sub(r"\.abi3-.*\.so$", ".abi3.so", super().get_ext_filename(fullname))


here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)  # pip does not add it
options = {}
if sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    # CFFI uses the limited API: one wheel serves all versions. Free-threaded builds have none.
    options["bdist_wheel"] = {"py_limited_api": "cp39"}
if not os.access(here, os.W_OK):
    scratch = tempfile.TemporaryDirectory()
    options["build"] = {"build_base": scratch.name}
    options["egg_info"] = {"egg_base": scratch.name}

setup(
    cffi_modules=["build_libuv.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension},
    options=options,
)
