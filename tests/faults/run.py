"""Injects faults: each call of the system by libuv and the extension fails, in turn.

    make faults
    make faults FAULTS_ARGS='--scenario spawn --function fork'

For each scenario, function and error of scenarios.py the first call of the function fails, then the
second, and so on, until the fault fires no more; errors of shortage also from that call on. Each is
tried in a process of its own. It passes if the scenario is achieved, or an error is raised or
reported; if another connection and timers of the same loop go on; if neither descriptors nor
handles are left; and if the scenario then succeeds without the fault. To abort, to crash and to
hang is to fail.
"""

import argparse
import ctypes
import gc
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

#: Seconds for a scenario to succeed or to fail, and for a process to end.
SCENARIO_LIMIT, PROCESS_LIMIT = 8, 40
#: How many calls of a function are made to fail, one after the other.
MOST_CALLS = 30

#: Scenarios whose calls are almost those of another: --short leaves them out.
LIKE_OTHERS = {"pipe_accept", "tcp_connect", "tcp_connect_from", "pipe_connect", "tls_accept"}

#: What fails still: (scenario or None for all, function) and the reason.
KNOWN = {
    ("first_loop", "realloc"): "libuv aborts where its own table of descriptors cannot grow",
    (None, "pthread_create"): "threads are tried before, and libuv aborts if another process has"
    " taken their places in between",
    ("first_loop", "pipe2"): "the loop makes sure of descriptors, but libuv's own pipe for signals"
    " comes after that, and it aborts if another thread has taken them in between",
    (None, "write_internal"): "libuv 1.53 aborts where the write to its own eventfd is interrupted,"
    " which no kernel does to one that does not block",
    ("spawn", "epoll_ctl"): "epoll refuses a pidfd that it has taken just before, in uv_poll_init",
}


def build(folder):
    """Compile the library that injects faults; return its path."""
    library = Path(folder) / "inject.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run(
        [shutil.which(compiler) or "cc", "-shared", "-fPIC", "-O1", "-fno-builtin",
         "-o", library, HERE / "inject.c", "-ldl"],
        check=True,
    )  # fmt: skip
    return library


# In the process of a case


def run_case(scenario, fault):
    """Run the scenario with the fault, and without it; return what was seen."""
    import pyasync

    inject = ctypes.CDLL(os.environ["LD_PRELOAD"])
    name, first, error, persists = fault
    arguments = name.encode(), first, error, persists
    cold = scenario.__name__ == "first_loop"
    seen = {"failures": []}
    if not cold:
        # libuv makes a pipe for signals with the first loop, and keeps it.
        pyasync.start_event_loop(lambda: None)
    else:
        inject.fault_set(*arguments)
    before = descriptors()
    outcome, errors = run_loop(scenario, seen, lambda: cold or inject.fault_set(*arguments),
                               lambda: finish(inject, seen))  # fmt: skip
    finish(inject, seen)
    seen["outcome"], seen["errors"] = outcome, errors
    if cold:
        # What libuv keeps for the process is no leak: that the next loops keep no more is checked.
        pyasync.start_event_loop(lambda: None)
        before = descriptors()
    outcome, errors = run_loop(scenario, seen, lambda: None, lambda: None)
    if outcome != "achieved":
        seen["failures"].append(f"without the fault, then: {outcome} {errors}")
    for _ in range(100):  # pool threads may close theirs a little later
        gc.collect()
        left = descriptors() - before
        if not left:
            break
        time.sleep(0.01)
    else:
        seen["failures"].append(f"descriptors left: {sorted(left)}")
    return seen


def finish(inject, seen):
    if "fires" not in seen:
        seen["fires"] = inject.fault_clear()
        seen["calls"] = {name: inject.fault_count(name.encode()) for name in functions()}


def run_loop(scenario, seen, arm, disarm):
    """Run the scenario in a loop beside a healthy connection. Returns an outcome and errors."""
    from scenarios import HOST, Case

    import pyasync

    with tempfile.TemporaryDirectory() as folder, socket.socket() as healthy:
        case = Case(folder)
        outcomes = []
        logging.getLogger("pyasync").handlers = [Recorder(case.errors)]

        def start():
            server = pyasync.tcp_server(HOST, 0, lambda sock, data: sock.write(data))
            healthy.connect(server.address)
            healthy.setblocking(False)
            ping(lambda: begin(server), "before the fault")

        def begin(server):
            handles = dict(pyasync.stats().handles)
            arm()
            deadline = time.monotonic() + SCENARIO_LIMIT
            try:
                done = scenario(case)
            except Exception as error:
                case.event(error)
            poll_until(
                lambda: case.errors or done(), deadline, lambda late: end(server, handles, late)
            )

        def end(server, handles, late):
            outcomes.append("hangs" if late else "reported" if case.errors else "achieved")
            if late:
                seen["failures"].append("neither achieved nor reported")
            case.close()  # with the fault still there
            poll_until(
                lambda: dict(pyasync.stats().handles) == handles,
                time.monotonic() + SCENARIO_LIMIT,
                lambda late: settled(server, handles, late),
            )

        def settled(server, handles, late):
            disarm()
            if late:
                left = {
                    kind: count
                    for kind, count in pyasync.stats().handles.items()
                    if count != handles[kind]
                }
                seen["failures"].append(f"handles left: {left}")
            ping(lambda: (server.close(), healthy.close()), "after the fault")

        def ping(then, when):
            healthy.send(b"!")

            def answered(late):
                if late:
                    seen["failures"].append(f"the healthy connection is dead {when}")
                    pyasync.exit_event_loop()
                then()

            poll_until(received, time.monotonic() + SCENARIO_LIMIT, answered)

        def received():
            try:
                return healthy.recv(1)
            except BlockingIOError:
                return False

        try:
            if scenario.__name__ == "first_loop":
                pyasync.start_event_loop(lambda: outcomes.append("achieved"))
            else:
                pyasync.start_event_loop(start, catch_app_errors=case.event)
        except Exception as error:
            case.event(error)
            outcomes.append("reported")
        if not case.join():
            seen["failures"].append("a peer's thread still runs")
        if pyasync.current_loop() is not None:
            seen["failures"].append("the loop is still there")
    return (outcomes or ["nothing"])[0], case.errors[:3]


def poll_until(condition, deadline, then):
    """Call ``then(late)`` when the condition is met or the time is over; a timer looks for it."""
    import pyasync

    def look():
        if condition():
            then(False)
        elif time.monotonic() > deadline:
            then(True)
        else:
            pyasync.delay(look, time=0.003)

    pyasync.delay(look, time=0.001)


class Recorder(logging.Handler):
    """Counts as reports what the package logs for want of an ``event_cb``."""

    def __init__(self, errors):
        super().__init__()
        self.errors = errors

    def emit(self, record):
        self.errors.append(record.getMessage())


def descriptors():
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
        except OSError:
            pass  # the descriptor by which they were listed
    return found


# In the process that starts them


def functions():
    from scenarios import CODES, FAULTS

    return [*FAULTS, *CODES]


def try_case(scenario, fault):
    """Run a case in a process of its own; return what it has seen."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                os.dup2(errors.fileno(), 2)
                seen = run_case(scenario, fault)
                os.write(writer, json.dumps(seen).encode())
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        data, deadline = b"", time.monotonic() + PROCESS_LIMIT
        late = False
        while not late:
            late = not select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]
            part = b"" if late else os.read(reader, 1 << 16)
            if not part:
                break
            data += part
        os.close(reader)
        if late:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if late or status != 0 or not data:
        how = "does not end" if late else f"ends with status {status}"
        return {"failures": [f"{how}: {' '.join(said)}"], "fires": 1, "outcome": "dies"}
    return json.loads(data)


def cases(scenario, options):
    """Yield ``(function, error, n, persists, seen)`` of all faults of a scenario."""
    from scenarios import SHORTAGE, errors_of

    counted = try_case(scenario, ("", 0, 0, False))
    yield "", "", 0, False, counted
    for function in functions():
        if not counted.get("calls", {}).get(function):
            continue
        if options.function and function not in options.function:
            continue
        errors = errors_of(function)
        for name in list(errors)[: 1 if options.short else None]:
            once_or_more = (False, True) if name in SHORTAGE else (False,)
            for persists in once_or_more[-1:] if options.short else once_or_more:
                most = 1 if options.short else 6 if "wait" in function else MOST_CALLS
                for n in range(1, most + 1):
                    seen = try_case(scenario, (function, n, errors[name], persists))
                    if not seen["fires"]:
                        break
                    yield function, name, n, persists, seen


def run_all(options):
    """Run all the faults; return the results, in the order in which they ran."""
    from scenarios import SCENARIOS

    results = []
    for scenario in SCENARIOS:
        if options.scenario and scenario.__name__ not in options.scenario:
            continue
        if options.short and scenario.__name__ in LIKE_OTHERS:
            continue
        start, tally = time.monotonic(), Counter()
        for function, error, n, persists, seen in cases(scenario, options):
            known = KNOWN.get((scenario.__name__, function)) or KNOWN.get((None, function))
            outcome = seen["outcome"]
            if seen["failures"]:
                outcome = "known" if known else "FAILED"
            tally[outcome] += 1
            results.append({
                "scenario": scenario.__name__, "function": function, "error": error, "call": n,
                "and_after": persists, "outcome": outcome, "failures": seen["failures"],
                "errors": seen.get("errors", []),
            })  # fmt: skip
            if outcome == "FAILED":
                what = f"{function} {error} at call {n}{' and after' if persists else ''}"
                print(f"  {scenario.__name__}: {what}: {'; '.join(seen['failures'])}",
                      file=sys.stderr, flush=True)  # fmt: skip
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items()))
        print(f"{scenario.__name__:<20} {counts} ({time.monotonic() - start:.0f} s)",
              file=sys.stderr, flush=True)  # fmt: skip
    return results


def run_without_faults(options):
    """Run each scenario in this process, for what looks at its memory; return the failures."""
    global SCENARIO_LIMIT
    import scenarios

    SCENARIO_LIMIT = scenarios.PATIENCE = 300  # memcheck is slow
    failures = []
    for scenario in scenarios.SCENARIOS:
        if not options.scenario or scenario.__name__ in options.scenario:
            seen = {"failures": []}
            outcome, errors = run_loop(scenario, seen, lambda: None, lambda: None)
            if outcome != "achieved":
                seen["failures"].append(f"{outcome} {errors}")
            failures += [f"{scenario.__name__}: {failure}" for failure in seen["failures"]]
    return failures


def print_summary(results):
    from scenarios import IMPOSSIBLE

    outcomes = sorted({result["outcome"] for result in results})
    table = Counter((result["function"], result["outcome"]) for result in results)
    print(f"\n{'function':<20}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for function in functions():
        row = [table[function, outcome] for outcome in outcomes]
        if any(row):
            print(f"{function:<20}" + "".join(f"{count or '':>10}" for count in row))
    totals = [sum(table[name, outcome] for name in ["", *functions()]) for outcome in outcomes]
    print(f"{len(results):<20}" + "".join(f"{total:>10}" for total in totals))
    print("\nNot injected, because no kernel gives it:")
    for what, why in IMPOSSIBLE.items():
        print(f"  {what}: {why}")
    print("\nKnown to fail still:" if KNOWN else "")
    for (scenario, function), why in KNOWN.items():
        print(f"  {scenario or 'all'}, {function}: {why}")


def main():
    from scenarios import SCENARIOS
    from tls_peers import server_context

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.__name__ for scenario in SCENARIOS]
    parser.add_argument("--scenario", action="append", choices=names, help="only this one")
    parser.add_argument("--function", action="append", help="only this one")
    parser.add_argument("--short", action="store_true", help="one error, at the first call")
    parser.add_argument("--none", action="store_true", help="no fault, all in one process")
    parser.add_argument("--json", action="store_true", help="print all results as JSON")
    options = parser.parse_args()
    if options.none:
        sys.exit("\n".join(run_without_faults(options)) or None)
    if "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "LD_PRELOAD": str(build(folder))}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    if not ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_set(b"", 0, 0, 0):
        sys.exit("neither the extension nor libuv is where faults are looked for")
    for name in set(options.function or ()) - {*functions()}:
        parser.error(f"argument --function: {name!r} is none of {', '.join(sorted(functions()))}")
    server_context()  # makes the certificates, once for all processes
    results = run_all(options)
    if options.json:
        print(json.dumps(results))
    else:
        print_summary(results)
    sys.exit(any(result["outcome"] == "FAILED" for result in results))


if __name__ == "__main__":
    main()
