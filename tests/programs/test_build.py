"""The build finds libuv, or stops with a message that says what to do."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from peers import run_python

import pyasync
from pyasync import _libuv

ROOT = Path(__file__).resolve().parents[2]

INSTALL_COMMANDS = [
    "apt install libuv1-dev pkg-config",
    "dnf install libuv-devel",
    "apk add libuv-dev",
    "brew install libuv",
]


def run_build_script(**environment):
    """Run build_libuv.py as far as the point where a C compiler would be called."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PKG_CONFIG", "PYASYNC_LIBUV_PREFIX")
    }
    return run_python("build_libuv.py", cwd=ROOT, env={**inherited, **environment})


def assert_stopped(build, *words):
    assert build.returncode == 1
    assert "Traceback" not in build.stderr
    assert len(build.stderr.splitlines()) < 10
    for word in [*words, *INSTALL_COMMANDS, "PYASYNC_LIBUV_PREFIX"]:
        assert word in build.stderr


def make_pkg_config(folder, script):
    path = folder / "pkg-config"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def make_prefix(folder, version, library="lib/libuv.so"):
    major, minor = version.split(".")
    (folder / "include" / "uv").mkdir(parents=True)
    (folder / "include" / "uv" / "version.h").write_text(
        f"#define UV_VERSION_MAJOR {major}\n"
        f"#define UV_VERSION_MINOR {minor}\n"
        "#define UV_VERSION_PATCH 2\n"
        "#define UV_VERSION_HEX  ((UV_VERSION_MAJOR << 16) | (UV_VERSION_MINOR <<  8))\n"
    )
    (folder / library).parent.mkdir(parents=True)
    (folder / library).touch()
    return str(folder)


def test_a_missing_pkg_config_stops_the_build_with_a_clear_message():
    build = run_build_script(PKG_CONFIG="/nowhere/pkg-config")
    assert_stopped(build, "libuv >= 1.44", "/nowhere/pkg-config", "No such file")


def test_a_libuv_that_pkg_config_does_not_know_stops_the_build(tmp_path):
    build = run_build_script(PKG_CONFIG=make_pkg_config(tmp_path, "exit 1"))
    assert_stopped(build, "libuv >= 1.44", "knows no libuv")


def test_a_libuv_too_old_for_us_stops_the_build_and_is_named(tmp_path):
    build = run_build_script(PKG_CONFIG=make_pkg_config(tmp_path, "echo 1.30.1"))
    assert_stopped(build, "libuv >= 1.44", "pkg-config has 1.30.1")


@pytest.mark.parametrize("version", ["1.44.0", "1.100.0", "2.0.0", "1.45.1-dev"])
def test_a_libuv_that_is_new_enough_passes(tmp_path, version):
    build = run_build_script(PKG_CONFIG=make_pkg_config(tmp_path, f"echo {version}"))
    assert build.stderr == ""
    assert build.returncode == 0


def test_an_empty_prefix_folder_stops_the_build_with_a_clear_message(tmp_path):
    build = run_build_script(PYASYNC_LIBUV_PREFIX=str(tmp_path))
    assert_stopped(build, str(tmp_path / "include" / "uv" / "version.h"))


def test_a_prefix_with_headers_but_no_library_stops_the_build(tmp_path):
    # Otherwise the system's library would be linked with another version's headers.
    prefix = make_prefix(tmp_path, "1.44", library="lib/unrelated.so")
    assert_stopped(run_build_script(PYASYNC_LIBUV_PREFIX=prefix), str(tmp_path / "lib"))


def test_a_prefix_with_a_libuv_too_old_stops_the_build(tmp_path):
    build = run_build_script(PYASYNC_LIBUV_PREFIX=make_prefix(tmp_path, "1.43"))
    assert_stopped(build, f"{tmp_path} has 1.43")


def test_a_prefix_is_used_without_asking_pkg_config(tmp_path):
    build = run_build_script(
        PYASYNC_LIBUV_PREFIX=make_prefix(tmp_path, "1.44"), PKG_CONFIG="/nowhere/pkg-config"
    )
    assert build.stderr == ""
    assert build.returncode == 0


# Hardening


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a build to find faults")
@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_the_extension_is_hardened():
    elf = subprocess.run(
        ["readelf", "--wide", "--segments", "--dynamic", "--symbols", _libuv.__file__],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert "GNU_RELRO" in elf  # with the next: the table of addresses of functions is read-only
    assert re.search(r"\(FLAGS(_1)?\).*NOW", elf)
    assert "__stack_chk_fail" in elf
    assert re.search(r"GNU_STACK.* RW ", elf)  # not executable


def flags_of_build(**environment):
    """Return the compiler's and the linker's flags of our own, in this environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in FLAG_VARIABLES}
    program = "import build_libuv; print(*build_libuv.hardening_flags())"
    environment = {**inherited, **environment}
    return run_python("-c", program, cwd=ROOT, env=environment, check=True).stdout


FLAG_VARIABLES = ("CFLAGS", "CPPFLAGS", "LDFLAGS")


@pytest.mark.parametrize(
    ("variable", "value", "ours"),
    [
        ("CFLAGS", "-O3", "-O2"),
        ("CFLAGS", "-g -O0", "_FORTIFY_SOURCE"),
        ("CFLAGS", "-U_FORTIFY_SOURCE", "_FORTIFY_SOURCE"),
        ("CPPFLAGS", "-D_FORTIFY_SOURCE=3", "_FORTIFY_SOURCE"),
        ("CFLAGS", "-fno-stack-protector", "stack-protector"),
        ("LDFLAGS", "-Wl,-z,lazy", "relro"),
    ],
)
def test_the_flags_of_the_user_win(variable, value, ours):
    if ours not in flags_of_build():
        pytest.skip("Python itself was built with such a flag")
    assert ours not in flags_of_build(**{variable: value})


def test_a_static_library_is_linked_by_its_path_and_leaves_no_run_path(tmp_path):
    build = run_build_script(PYASYNC_LIBUV_PREFIX=make_prefix(tmp_path, "1.44", "lib/libuv.a"))
    assert str(tmp_path / "lib" / "libuv.a") in build.stdout.split()
    assert "rpath" not in build.stdout


@pytest.mark.parametrize("folder", ["lib64", f"lib/{sysconfig.get_config_var('MULTIARCH')}"])
def test_the_library_may_lie_in_another_folder_of_the_prefix(tmp_path, folder):
    build = run_build_script(
        PYASYNC_LIBUV_PREFIX=make_prefix(tmp_path, "1.44", f"{folder}/libuv.so")
    )
    assert f"-L{tmp_path / folder}" in build.stdout.split()
    assert build.stderr == ""


def test_a_missing_compiler_stops_the_build_with_a_clear_message():
    build = run_build_script(CC="/nowhere/cc -pthread")
    assert build.returncode == 1
    assert "there is no C compiler ('/nowhere/cc -pthread' is not found)" in build.stderr
    assert "apt install gcc libc6-dev python3-dev" in build.stderr
    assert len(build.stderr.splitlines()) < 10


# setup.py


@pytest.fixture
def project(tmp_path):
    """Give a copy of what a build needs."""
    folder = tmp_path / "project"
    for name in ["csrc", "pyasync"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ["setup.py", "build_libuv.py", "pyproject.toml", "MANIFEST.in", "README.md"]:
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    return folder


def run_setup(project, *arguments, **environment):
    environment = {**os.environ, **environment}
    done = run_python("setup.py", "--quiet", *arguments, cwd=project, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_source_distribution_needs_neither_libuv_nor_a_compiler(project):
    run_setup(project, "sdist", PKG_CONFIG="/nowhere/pkg-config", CC="/nowhere/cc")
    [archive] = (project / "dist").iterdir()
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"csrc/loop.c", "csrc/exports.map", "build_libuv.py", "setup.py"} <= names


def make_compiler(folder, log="/dev/null"):
    """Return a compiler that only writes down how it is called."""
    compiler = folder / "cc"
    compiler.write_text(
        f"""#!/bin/sh
echo "$*" >> {log}
while [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done
"""
    )
    compiler.chmod(0o755)
    return compiler


def test_an_older_python_is_refused_by_the_first_line_that_it_reads(project):
    program = "import sys; sys.version_info, sys.version = (3, 8, 18), '3.8.18'; import setup"
    done = run_python("-c", program, cwd=project)
    assert done.stderr == "pyasync needs Python 3.9 or newer; this is Python 3.8.18\n"
    assert done.returncode == 1


#: Runs setup.py as CPython 3.15 does, which would name the platform in an abi3 extension.
AS_NEW_PYTHON = """
import importlib.machinery, runpy, sysconfig
importlib.machinery.EXTENSION_SUFFIXES.insert(0, ".abi3-x86_64-linux-gnu.so")
sysconfig.get_config_vars()["SOABI_PLATFORM"] = "x86_64-linux-gnu"  # newer setuptools ask this
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy has no limited API")
def test_the_extension_of_a_wheel_for_all_cpythons_is_found_by_each(project, tmp_path):
    compiler = make_compiler(tmp_path)
    environment = {
        **os.environ,
        "PYASYNC_LIBUV_PREFIX": make_prefix(tmp_path, "1.44"),
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
    }
    options = ["--quiet", "bdist_wheel", "--dist-dir", str(tmp_path)]
    done = run_python("-c", AS_NEW_PYTHON, *options, cwd=project, env=environment)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if name.endswith(".so")]
    assert names == ["pyasync/_libuv.abi3.so"] or "-abi3-" not in wheel.name


@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="mounts, as root alone may"
)
def test_a_tree_that_cannot_be_written_to_is_built_elsewhere(project, tmp_path):
    """As pip does it: no build folder, and no egg-info, beside the sources."""
    prefix = make_prefix(tmp_path, "1.44")
    compiler = make_compiler(tmp_path)
    setup = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=unchanged", "sh", "-eu", "-c", """
            mount --bind . .
            mount -o remount,bind,ro .
            cd "$PWD"
            ! touch setup.py 2>/dev/null || exit 77
            "$@"
        """, "sh", *setup],
        cwd=project,
        env={
            **os.environ,
            "PYASYNC_LIBUV_PREFIX": prefix,
            "CC": str(compiler),
            "LDSHARED": f"{compiler} -shared",
        },
        capture_output=True,
        text=True,
        timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert any(name.startswith("pyasync/_libuv.") for name in files.namelist())


def test_another_prefix_builds_anew_and_the_users_flags_are_kept(project, tmp_path):
    log = tmp_path / "log"
    compiler = make_compiler(tmp_path, log)
    for name, version in [("one", "1.44"), ("other", "1.52")]:
        (tmp_path / name).mkdir()
        prefix = make_prefix(tmp_path / name, version)
        log.write_text("")
        run_setup(
            project,
            "build_ext",
            PYASYNC_LIBUV_PREFIX=prefix,
            CC=str(compiler),
            LDSHARED=f"{compiler} -shared",
            CFLAGS="-Os -DMINE",
        )
        *compilations, link = log.read_text().splitlines()
        assert len(compilations) > len(list((ROOT / "csrc").glob("*.c")))
        for call in compilations:
            assert f"-I{prefix}/include" in call
            assert "-DMINE" in call
            assert [word for word in call.split() if word.startswith("-O")][-1] == "-Os"
        assert f"-L{prefix}/lib" in link


# A tree in which nothing is built


@pytest.fixture
def tree(tmp_path):
    """Give a copy of the package's sources, without the extension."""
    shutil.copytree(ROOT / "pyasync", tmp_path / "pyasync", ignore=shutil.ignore_patterns("*.so"))
    return tmp_path


def run_bare_python(*arguments, cwd, without=("LD_PRELOAD",)):
    """Run Python as a shell would that has not set these variables."""
    unwanted = ("PYTHONPATH", "PYTHONSAFEPATH", *without)
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return run_python(*arguments, cwd=cwd, env=environment, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [("-c", "import pyasync"), ("-m", "pyasync")])
def test_a_tree_in_which_nothing_is_built_says_so_and_what_to_do(tree, arguments):
    # -S: an editable installation would find the extension of its own tree.
    done = run_bare_python("-S", *arguments, cwd=tree)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tree / 'pyasync'} has no extension")
    assert f"`pip install -e .` in {tree}," in last
    for word in ("hide a pyasync that is installed", "`python -I`", "`python -P`"):
        assert word in last
    assert "ModuleNotFoundError" not in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "-I",
        pytest.param(
            "-P", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="since Python 3.11")
        ),
    ],
)
def test_the_options_that_the_message_names_find_the_installed_package(tree, option):
    # An extension that is built with sanitizers needs their libraries in the process.
    program = "import pyasync; print(pyasync.__file__)"
    done = run_bare_python(option, "-c", program, cwd=tree, without=())
    assert (done.stdout.strip(), done.stderr) == (pyasync.__file__, "")


def test_an_extension_whose_library_is_missing_says_which(tree):
    code = Path(_libuv.__file__).read_bytes()
    if b"libuv.so.1\0" not in code:
        pytest.skip("libuv is linked in another way")
    broken = tree / "pyasync" / Path(_libuv.__file__).name
    broken.write_bytes(code.replace(b"libuv.so.1\0", b"libuv.so.0\0"))
    done = run_bare_python("-c", "import pyasync", cwd=tree)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "libuv.so.0" in last
    assert "nothing is built" not in last


def test_an_extension_that_misses_a_module_says_which(tree):
    (tree / "pyasync" / "_libuv.py").write_text("import _cffi_backend_of_nobody\n")
    done = run_bare_python("-c", "import pyasync", cwd=tree)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named '_cffi_backend_of_nobody'"


def test_programs_that_tests_start_have_the_package_that_is_tested():
    """Also where that is installed, and the tree has none or one that is built otherwise."""
    program = "import pyasync; print(pyasync.__file__)"
    done = run_python("-c", program, check=True)
    assert done.stdout.strip() == pyasync.__file__
