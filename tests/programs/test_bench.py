"""The benchmarks' server and load client, run as a person would run them."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peers import wait_until

import pyasync

BENCH = Path(__file__).resolve().parents[2] / "bench"

#: The sanitizers make everything several times slower: then loads are as many times smaller.
SLOWNESS = 4 if "asan" in os.environ.get("LD_PRELOAD", "") else 1

PATIENCE = 170  # seconds for a process to end: of the 180 that a test has


def command(program, *arguments, python_options=()):
    return [sys.executable, *python_options, str(BENCH / program), *arguments]


def finish(process):
    """Wait for the end of a process. Gives its exit status and what else it has printed."""
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def json_lines(output):
    """What the lines of a --json output say, the last of each kind, by kind."""
    lines = map(json.loads, output.splitlines())
    return {line["event"]: line for line in lines}


def run(*words):
    """Run a command to its end. Gives its exit status, output and errors, as text."""
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)


def run_bench(*arguments):
    """Run http_delay.py on a free port to its end."""
    return run(*command("http_delay.py", "--port=0", *arguments))


def run_load(port, *arguments):
    """Run http_load.py to its end."""
    return run(*command("http_load.py", f"--port={port}", "--json", *arguments))


def run_c1m(*arguments):
    return run(*command("c1m.py", *arguments))


def start(program, *arguments, **options):
    """Start a program; what it prints is read here."""
    return subprocess.Popen(
        command(program, *arguments), stdout=subprocess.PIPE, text=True, **options
    )


@contextlib.contextmanager
def server(*arguments, **options):
    """Give a running http_delay.py and its port, and end it after the block at the latest."""
    with subprocess.Popen(
        command("http_delay.py", "--port=0", *arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=BENCH,  # with -m, Python looks for modules where it was started
    ) as process:
        try:
            yield process, wait_for_port(process)
        finally:
            process.kill()


@contextlib.contextmanager
def waiting_client(process, port):
    """Give a connection whose request the server has received, with an answer to wait for."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_for_line(process, "incoming: 1 ")
        yield client


def wait_for_port(process):
    for line in process.stdout:
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", line)
        if found:
            return int(found[1])
    pytest.fail(f"the server ended with exit status {process.wait()}, and never listened")


def wait_for_line(process, pattern):
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    pytest.fail(f"the server ended with no line like {pattern!r}")


def finished(summary):
    return int(re.search(r"server: ([\d,]+) requests", summary)[1].replace(",", ""))


def requires(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


#: It starts programs on PyPy itself.
requires_compare = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or SLOWNESS > 1 or sys.implementation.name == "pypy",
    reason="bench/compare.py pins processes, is for CPython, and measures no sanitizers",
)


# Other people's clients


@requires("httperf")
def test_httperf_gets_one_reply_on_each_connection():
    connections, rate = 1000 // SLOWNESS, 400 // SLOWNESS  # it has 1,022 at once at most
    with server("--delay=0.5") as (process, port):
        report = run(
            *("httperf", "--hog", "--server=127.0.0.1", f"--port={port}", "--timeout=20"),
            *(f"--num-conns={connections}", "--num-calls=10", f"--rate={rate}"),
        ).stdout
        process.terminate()
        status, output = finish(process)
    # It asks ten times on each connection, which the server closes after one answer.
    total = re.search(r"Total: connections (\d+) requests \d+ replies (\d+)", report)
    assert [int(count) for count in total.groups()] == [connections, connections], report
    assert re.search(r"client-timo 0 socket-timo 0 connrefused 0", report)
    assert re.search(rf"2xx={connections} ", report)
    assert status == 0
    assert finished(output) == connections


@requires("wrk")
def test_wrk_counts_as_many_answers_as_the_server():
    connections = 50
    with server("--delay=0") as (process, port):
        report = run("wrk", "-t1", f"-c{connections}", "-d2", f"http://127.0.0.1:{port}/").stdout
        process.terminate()
        status, output = finish(process)
    counted = int(re.search(r"(\d+) requests in", report)[1])
    assert counted > 0
    # At its end wrk leaves what is open: the server may have answered there.
    assert counted <= finished(output) <= counted + connections
    assert status == 0


# The load client


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
def test_load_is_answered_completely(workers, unbuffered):
    bench = run_bench(
        "--delay=0.2",
        "--load=500",
        "--rate=1000",
        "--json",
        f"--workers={workers}",
        *(["--unbuffered"] if unbuffered else []),
    )
    assert (bench.returncode, bench.stderr) == (0, "")
    said = json_lines(bench.stdout)
    assert said["listening"]["processes"] == workers
    assert said["load-summary"]["replies"] == 500
    assert said["load-summary"]["lost"] == 0
    assert said["load-summary"]["errors"] == {}
    assert said["load-summary"]["latency_ms"]["min"] >= 200
    assert said["counters"]["finished"] == 500
    assert said["summary"]["requests"] == 500
    assert said["summary"]["cpu_us_per_request"] > 0


def test_a_closed_loop_keeps_no_more_open_than_it_was_told():
    bench = run_bench("--delay=0.01", "--load=500", "--concurrency=20", "--json")
    assert (bench.returncode, bench.stderr) == (0, "")
    load = json_lines(bench.stdout)["load-summary"]
    assert load["replies"] == 500
    assert load["maximum_concurrent"] == 20


def test_load_is_shared_by_processes():
    with server("--delay=0") as (_, port):
        client = run_load(port, "--num-conns=501", "--processes=2", "--concurrency=11")
    load = json_lines(client.stdout)["load-summary"]
    assert client.returncode == 0
    assert (load["processes"], load["replies"], load["maximum_concurrent"]) == (2, 501, 11)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "short answer"),
        (b"HTTP/1.1 200 OK\r\n", "short answer"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "wrong answer"),
        (None, "timeout"),
    ],
)
def test_client_counts_only_right_answers(answer, error):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        timeout = 0.5 if answer is None else PATIENCE
        arguments = [f"--port={port}", "--num-conns=1", f"--timeout={timeout}", "--json"]
        with start("http_load.py", *arguments) as client:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                status, output = finish(client)
    load = json_lines(output)["load-summary"]
    assert status == 1
    assert (load["replies"], load["lost"], load["errors"]) == (0, 1, {error: 1})


def test_client_counts_what_is_refused():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        client = run_load(unheard.getsockname()[1], "--num-conns=50", "--concurrency=5")
    assert client.returncode == 1
    assert json_lines(client.stdout)["load-summary"]["errors"] == {"refused": 50}


def test_load_that_cannot_fit_says_how_many_workers_would():
    bench = run_bench("--load=100000000", "--delay=5", "--rate=1000000")
    assert bench.returncode == 2
    assert bench.stdout == ""
    needed = int(re.search(r"--workers (\d+)$", bench.stderr)[1])
    assert needed > 1


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        ("http_delay.py", "--port=-1"),
        ("http_delay.py", "--port=65536"),
        ("http_delay.py", "--page=70000"),
        ("http_delay.py", "--backlog=-1"),
        ("http_delay.py", "--delay=-1"),
        ("http_delay.py", "--delay=nan"),
        ("http_delay.py", "--workers=1000000"),
        ("http_delay.py", "--load=0"),
        ("http_delay.py", "--rate=0"),
        ("http_delay.py", "--concurrency=-3"),
        ("http_load.py", "--port=0"),
        ("http_load.py", "--rate=nan"),
        ("soak.py", "--svg=/no/such/folder/file.svg"),
        ("c1m.py", "--delay=nan"),
        ("c1m.py", "--limit=inf"),
        ("hot.py", "--events=3"),
        ("hot.py", "--against=/nowhere"),
        ("ffi_profile.py", "--bogus"),
        ("../examples/background_work.py", "--workers=0"),
        ("../examples/background_work.py", "--workers=1000000"),
        ("../examples/hardened_server.py", "--connections=0"),
        ("../examples/hardened_server.py", "--per-address=-1"),
        ("../examples/hardened_server.py", "--line-length=-1"),
        ("../examples/hardened_server.py", "--line-time=nan"),
        ("../examples/hardened_server.py", "--idle-time=inf"),
        ("../examples/hardened_server.py", "--write-time=-1"),
        ("../examples/hardened_server.py", "--key=file"),
        ("../examples/https_delay.py", "--delay=nan"),
        ("../examples/proxy.py", "99999"),
        ("../examples/run_all.py", "--grace=-1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_before_anything_starts(program, wrong):
    needed = {
        "background_work.py": ["file"],
        "https_delay.py": ["--certificate=x"],
        "proxy.py": ["127.0.0.1"],
    }
    name = program.rpartition("/")[2]
    done = run(*command(program, *needed.get(name, []), wrong))
    assert (done.returncode, done.stdout) == (2, "")
    option = "target_port" if name == "proxy.py" else wrong.partition("=")[0]
    assert re.search(rf"^{name}: error: .*{option}.*\n\Z", done.stderr, re.MULTILINE)


# The end


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_first_signal_lets_connections_finish(signo, workers):
    with server("--delay=1.5", "--workers", workers) as (process, port):
        with waiting_client(process, port) as client:
            process.send_signal(signo)
            answer = client.makefile("rb").read()
        status, output = finish(process)
    assert answer.endswith(b"\r\n\r\nomglolwtf")
    assert len(answer) == 110
    assert status == 0
    assert finished(output) == 1


@pytest.mark.parametrize(
    ("workers", "signo", "expected"),
    [
        ("1", signal.SIGINT, 130),
        ("1", signal.SIGTERM, -signal.SIGTERM),
        ("2", signal.SIGINT, 130),
        ("2", signal.SIGTERM, 143),
    ],
)
def test_second_signal_ends_it_at_once(workers, signo, expected):
    with (
        server("--delay=1000", "--workers", workers) as (process, port),
        waiting_client(process, port),
    ):
        process.send_signal(signo)
        wait_until_refused(port)  # then the first has been heard
        process.send_signal(signo)
        status, output = finish(process)
    assert status == expected
    assert "Traceback" not in output


def wait_until_refused(port):
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionResetError:
            pass  # the listener was closed in between
        except ConnectionRefusedError:
            return


def test_dead_worker_is_reported():
    with server("--delay=0", "--workers=2") as (process, _):
        worker = children_of(process.pid)[0]
        os.kill(int(worker), signal.SIGKILL)
        wait_for_line(process, f"worker {worker} was ended by SIGKILL")
        process.terminate()
        status, _ = finish(process)
    assert status == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_port_in_use_is_a_short_message(workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bench = run_bench(f"--port={taken.getsockname()[1]}", f"--workers={workers}")
    assert bench.returncode == 1
    assert "in use" in bench.stderr
    assert "Traceback" not in bench.stderr


# The profile


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="PyPy's profiler does not name functions in C"
)
@pytest.mark.parametrize(
    ("options", "crossings"),
    [
        (["--delay=0.05"], ["pa_run"]),
        (["--delay=0.05", "--unbuffered"], ["pa_run", "pa_write", "pa_close"]),
    ],
    ids=["buffered", "unbuffered"],
)
def test_profile_names_each_crossing(options, crossings):
    with server(*options, python_options=("-m", "cProfile")) as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert len(client.makefile("rb").read()) == 110
        process.send_signal(signal.SIGINT)
        status, profile = finish(process)
    assert status == 0
    for crossing in crossings:
        assert f"{{built-in method pyasync._libuv.{crossing}}}" in profile


# The comparison


TINY = ["--seconds=0.3", "--warm-up=0.02"]
COMPARED = ["http", "busy", "held", "idle", "echo", "timers", "cancel", "pending"]
COMPARED += ["accept", "connect", "wakeups", "udp", "lines", "scale-http", "scale-timers"]


def run_compare(*arguments):
    return run(*command("compare.py", "--quick", *TINY, "--servers", "c", "pyasync", *arguments))


@requires_compare
@pytest.mark.parametrize("workload", COMPARED)
def test_every_workload_of_the_comparison_gives_figures(workload):
    bench = run_compare("--json", "--workloads", workload, "--held-delay=1", "--connections=100")
    assert bench.returncode == 0, bench.stderr
    assert "failed" not in bench.stderr
    cases = json.loads(bench.stdout)["workloads"][workload]
    assert cases
    for case in cases.values():
        # In C there is no Python thread, and no readline.
        assert set(case) == ({"pyasync"} if workload in ("busy", "lines") else {"c", "pyasync"})
        for figures in case.values():
            compared = next(iter(figures))
            assert len(figures[compared]["runs"]) == 1
            assert figures[compared]["median"] > 0 or workload in ("held", "idle", "pending")
        if "c" in case:
            assert case["c"]["ratios"]["c"] == 1


@requires_compare
@pytest.mark.parametrize(
    "workloads",
    [
        ["http-streams", "echo-streams", "echo-sock", "steps"],
        pytest.param(["web"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_workloads_of_asyncio_alone_run_on_a_loop_of_its_kind(workloads):
    servers, little = ["--servers", "c", "aio"], ["--seconds=0.1", "--steps=1000"]
    bench = run_compare("--json", *little, "--workloads", *workloads, *servers)
    assert bench.returncode == 0, bench.stderr
    assert "failed" not in bench.stderr
    assert "(cannot do this)" in bench.stderr  # as C says
    measured = json.loads(bench.stdout)["workloads"]
    assert list(measured) == workloads
    for case in itertools.chain.from_iterable(cases.values() for cases in measured.values()):
        # The servers that "web" runs may not be installed.
        assert set(case) == {"aio"} or (workloads == ["web"] and not case)


@requires_compare
@pytest.mark.slow
def test_connections_that_are_held_ten_times_take_no_more_memory():
    bench = run_compare("--json", "--workloads=growth", "--connections=2000", "--held-delay=1")
    assert bench.returncode == 0, bench.stderr
    case = json.loads(bench.stdout)["workloads"]["growth"][""]
    for figures in case.values():
        assert figures["growth"]["median"] < 0.5 * figures["in the first round"]["median"]


@requires_compare
def test_comparison_is_printed_as_tables():
    bench = run_compare("--workloads", "timers", "scale-timers", "--rounds=3")
    assert bench.returncode == 0, bench.stderr
    assert re.search(r"^timers: create 5,000 timers, due over 0.05 s, and fire them$",
                     bench.stdout, re.MULTILINE)  # fmt: skip
    assert re.search(r"^   c +[\d.]+ +[\d.]+-[\d.]+ +1.00$", bench.stdout, re.MULTILINE)
    assert re.search(r"^   pyasync +[\d.]+ +[\d.]+-[\d.]+ +[\d.]+$", bench.stdout, re.MULTILINE)
    assert "CPU µs/timer, by timers" in bench.stdout


@requires_compare
def test_comparison_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bench = run_compare("--workloads", "timers", "scale-timers", f"--svg={tmp_path}")
    assert bench.returncode == 0, bench.stderr
    for name in ("compare.svg", "scale.svg"):
        picture = (tmp_path / name).read_text()
        assert picture.startswith("<?xml")
        assert "pyasync" in picture
        assert "less is better" in picture


# Without the kernel


@requires_compare
def test_the_cost_of_an_event_is_told_for_each_workload_and_against_another_build():
    ours = Path(pyasync.__file__).parents[1]  # as the other build, too
    little = ["--rounds=1", "--events=2000", "--servers", "c", "pyasync"]
    words = command("hot.py", "--json", *little, f"--against={ours}")
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    workloads = json.loads(done.stdout)["workloads"]
    assert list(workloads) == ["request", "echo", "one", "timers"]
    for name, programs in workloads.items():
        assert list(programs) == ["against", "c", "pyasync"]
        cost = {program: figures["CPU µs/event"]["median"] for program, figures in programs.items()}
        assert 0 < cost["c"] < cost["pyasync"], name
        assert programs["pyasync"]["ratios"]["against"] == cost["pyasync"] / cost["against"]


# Very many connections


@requires_compare
def test_all_connections_are_held_at_once_and_answered():
    bench = run_c1m("--json", "--connections=801", "--per-process=200", "--delay=3", "--rate=4000")
    assert (bench.returncode, bench.stderr) == (0, "")
    result = json.loads(bench.stdout)
    assert result["processes"] == 5
    assert (result["held_at_once"], result["replies"], result["errors"]) == (801, 801, 0)
    # Of the kernel's memory, which is everybody's, so few connections are no sure part.
    assert result["memory"]["sockets"].startswith("TCP: inuse ")
    assert result["memory"]["server_bytes_per_connection"] > 0


@requires_compare
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_50_000_connections_are_held_at_once_and_answered():
    arguments = ["--connections=50000", "--rate=4000", "--limit=150"]
    bench = run_c1m("--json", *arguments)
    assert (bench.returncode, bench.stderr) == (0, "")
    result = json.loads(bench.stdout)
    assert (result["held_at_once"], result["replies"], result["errors"]) == (50000, 50000, 0)


@requires_compare
def test_connections_that_are_answered_too_soon_are_a_failure():
    bench = run_c1m("--connections=2000", "--rate=1000", "--delay=0.1")
    assert bench.returncode == 1
    assert re.search(r"the first answer was due when [\d,]+ were held", bench.stderr)


@requires_compare
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--connections=2000000000"], r"fs\.file-max is [\d,]+, [\d,]+ are in use"),
        (["--connections=2000000000"], r"MiB of memory are available, and about [\d,]+ MiB"),
        (["--connections=1000", "--limit=1"], r"--limit is 1 s, and the delay "),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(arguments, reason):
    bench = run_c1m(*arguments)
    assert (bench.returncode, bench.stdout) == (2, "")
    assert re.search(reason, bench.stderr)


@requires_compare
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(signo):
    arguments = ["--connections=1000", "--per-process=250", "--delay=30"]
    with start("c1m.py", *arguments, stderr=subprocess.PIPE) as process:
        wait_for_line(process, "held at once: 1,000")
        children = children_of(process.pid)
        assert len(children) == 8
        process.send_signal(signo)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def children_of(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("the system does not list the children of a process")
    return listed.read_text().split()


@requires_compare
def test_a_comparison_that_is_killed_leaves_no_server():
    arguments = ["--workloads=held", "--servers=pyasync", "--held-delay=30"]
    with start("compare.py", "--quick", *arguments, stderr=subprocess.DEVNULL) as process:
        # The server listens when its client has been started.
        wait_until(lambda: any(map(is_client, children_of(process.pid))), PATIENCE)
        server, *_ = children_of(process.pid)
        assert b"pyasync_peer.py" in command_of(server)
        process.kill()
    wait_until(lambda: not command_of(server), PATIENCE)


def is_client(pid):
    return b"baseline/load" in command_of(pid)


def command_of(pid):
    """The words that started a process; none once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_load_over_tls_is_answered(workers):
    done = run_bench(
        "--tls", "--delay=0.01", "--load=60", "--concurrency=10", f"--workers={workers}"
    )
    assert done.returncode == 0, done.stderr
    assert "replies: 60, lost: 0" in done.stdout
