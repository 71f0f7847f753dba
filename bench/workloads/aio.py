"""What programs of asyncio do: one text, on each loop that runs it."""

import shutil

from common import KIB
from contenders import Watch, cost, run, running, wrk

from workloads import Case, workload
from workloads.network import echo_cases

LOOPS = ("uvloop", "asyncio", "pypy-asyncio")


@workload(references=LOOPS)
def http_streams(contender, value, options):
    """a connection a request with asyncio.start_server, 200 at a time.

    Compare CPU/request, the server's own.
    """
    return cost(contender, options, ("http_streams",), "request", "http", 200)


@workload(references=LOOPS, cases=echo_cases(100))
def echo_streams(contender, value, options):
    """echo with asyncio.start_server, over kept connections.

    Compare CPU/message, the server's own.
    """
    connections, size = value
    return cost(contender, options, ("echo_streams",), "message", "echo", connections, "-s", size)


@workload(references=LOOPS)
def echo_sock(contender, value, options):
    """echo of 1 KiB with sock_recv and sock_sendall, over 100 kept connections.

    Compare CPU/message, the server's own.
    """
    return cost(contender, options, ("echo_sock",), "message", "echo", 100, "-s", KIB)


def web_servers(options):
    return [
        Case("uvicorn, httptools", ("uvicorn", "httptools")),
        Case("uvicorn, h11", ("uvicorn", "h11")),
        Case("aiohttp", ("aiohttp",)),
    ]


@workload(references=LOOPS, cases=web_servers)
def web(contender, words, options):
    """HTTP servers of others, requests of wrk on 64 kept connections.

    Compare CPU/request, the server's own. wrk runs for whole seconds.
    """
    if not shutil.which("wrk"):
        raise RuntimeError("wrk is not installed")
    with running(contender, options.server_cores, *words) as (pid, port):
        wrk(options.client_cores, port, options.warm_up)
        watch = Watch(pid)
        return watch.figures(wrk(options.client_cores, port, options.seconds), "request")


def kinds_of_steps(options):
    return [
        Case("call_soon, one after the other", "chain"),
        Case("call_soon, 1,000 at once", "wide"),
        Case("call_soon_threadsafe, 1,000 at once", "threadsafe"),
        Case("futures", "futures"),
        Case("tasks", "tasks"),
    ]


@workload(references=LOOPS, cases=kinds_of_steps)
def steps(contender, kind, options):
    """{steps:,} callbacks, futures or tasks, with no socket.

    CPU time of the process for each, which has done the same once before.
    """
    found = run(contender, options.server_cores, "steps", kind, options.steps)
    return {"CPU µs/step": found["cpu_seconds"] * 1e6}
