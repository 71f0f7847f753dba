"""A load from many processes, or many machines: Dask gives http_load.py's clients to its workers.

    python bench/dask_load.py                          four workers, against two server processes
    python bench/dask_load.py --num-conns 40000 --delay 5 --rate 4000 --svg load.svg
    python bench/dask_load.py --scheduler tcp://10.0.0.1:8786 --server 10.0.0.2 --port 9009

Scheduler and workers are Dask's own programs, which `python -m pyasync.aio` runs on pyasync's loop;
a client is a coroutine in a worker, and its connections are the callback API's, in the same loop.
Their latencies are gathered here. By itself it starts all on this machine. On others: start `python
-m pyasync.aio -m distributed.cli.dask_worker ADDRESS --no-nanny` with bench/ in PYTHONPATH.

distributed is needed: pip install 'pyasync[programs]'. The exit status is 1 if a request was lost.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial

import chart
import common
import http_load
from common import BENCH, delay_time, positive_float, positive_int, shares
from workers import Console

import pyasync.aio

PATIENCE = 60  # seconds for a program to start
TOPIC = "load"


# In a worker


async def run_client(options, connections, rate, concurrency):
    """Run a load client in this worker's loop. Returns what it has done, and what the loop is."""
    from distributed import get_worker

    worker = get_worker()
    ended = asyncio.get_running_loop().create_future()

    def send(kind, tally):
        counts = {name: getattr(tally, name) for name in ("started", "open", "replies")}
        worker.log_event(TOPIC, (worker.name, {**counts, "errors": dict(tally.errors)}))

    sources = http_load.source_addresses(options.server, options.num_conns)
    client = http_load.LoadClient(options, connections, rate, concurrency, sources)
    client.start(send, partial(ended.set_result, None))
    await ended
    client.tally.latencies = client.latencies
    client.report()
    loop = asyncio.get_running_loop()
    return client.tally, f"{type(loop).__module__}.{type(loop).__qualname__}", os.getpid()


# Here


@contextmanager
def program(*words, **options):
    """Run a program until the block ends."""
    process = subprocess.Popen([sys.executable, *map(str, words)], **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def start_cluster(stack, options):
    """Start a scheduler and workers. Returns the scheduler's address."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    path = f"{folder}/scheduler"
    paths = [str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}}
    quiet["stderr"] = None if options.verbose else subprocess.DEVNULL
    dask = ["-m", "pyasync.aio", "-m"]
    scheduler = ["distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0"]
    stack.enter_context(
        program(*dask, *scheduler, f"--scheduler-file={path}", "--no-dashboard", **quiet)
    )
    for number in range(options.workers):
        # No nanny: it would start a process that nobody has told of pyasync's loop.
        worker = ["distributed.cli.dask_worker", f"--scheduler-file={path}", "--no-nanny"]
        worker += [f"--name={number}", "--nthreads=1", "--no-dashboard", "--host=127.0.0.1"]
        stack.enter_context(program(*dask, *worker, f"--local-directory={folder}", **quiet))
    return {"scheduler_file": path}


def start_server(stack, options):
    """Start http_delay.py; it says where it listens."""
    server = ["--port=0", f"--delay={options.delay}", f"--workers={options.server_workers}"]
    process = stack.enter_context(
        program(BENCH / "http_delay.py", *server, "--json", "--no-stats", stdout=subprocess.PIPE)
    )
    for line in process.stdout:
        said = json.loads(line)
        if said["event"] == "listening":
            options.server, options.port = said["host"], said["port"]
            return
    sys.exit("the server has not started")


async def run_load(options, console, where):
    """Scatter the clients over the workers. Returns what each has done, and their progress."""
    from distributed import Client

    latest, progress = {}, []

    def on_progress(event):
        _, (worker, counts) = event
        latest[worker] = http_load.Tally(**{**counts, "errors": Counter(counts["errors"])})
        total = sum(latest.values(), http_load.Tally())
        progress.append((asyncio.get_running_loop().time() - began, total.replies))
        if worker == next(iter(latest)):  # once a second, whatever the number of workers
            http_load.print_tally(console, total, workers=len(latest))

    async with Client(asynchronous=True, timeout=PATIENCE, **where) as client:
        await client.wait_for_workers(options.workers, timeout=PATIENCE)
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
        count = len(addresses)
        console.print("cluster", "Dask: {workers} workers", workers=count)
        began = asyncio.get_running_loop().time()
        client.subscribe_topic(TOPIC, on_progress)
        most_open = options.concurrency or options.num_conns
        parts = zip(addresses, shares(options.num_conns, count), shares(most_open, count))
        rate = options.rate and options.rate / count
        results = await client.gather(
            [
                client.submit(run_client, options, part, rate, open_, workers=[at], pure=False)
                for at, part, open_ in parts
            ]
        )
    return results, progress


def print_results(console, results, options):
    total = sum((tally for tally, _, _ in results), http_load.Tally())
    for number, (tally, loop, pid) in enumerate(results):
        latency_ms, shown = http_load.percentiles_ms(tally.latencies)
        console.print(
            "worker",
            f"worker {{number}}: {{replies:,}} replies, latency ms: {shown}; "
            "{loop}, process {pid}",
            number=number,
            replies=tally.replies,
            latency_ms=latency_ms,
            loop=loop,
            pid=pid,
        )
    http_load.print_result(console, total, options.num_conns, workers=len(results))
    return total


def draw(path, results, progress, options):
    """Draw each worker's latencies, and all their answers a second."""
    chart.save(
        path,
        [partial(draw_latencies, results, options), partial(draw_progress, progress, options)],
        14,
        common.in_words(common.machine()),
        columns=2,
    )


def draw_latencies(results, options, axes):
    colors = [*chart.CURVES.values()]
    for number, (tally, _, _) in enumerate(results):
        ordered = sorted(1e3 * (value - options.delay) for value in tally.latencies)
        shares_below = [(index + 1) / len(ordered) for index in range(len(ordered))]
        color = colors[number % len(colors)]
        axes.plot(ordered, shares_below, label=f"worker {number}", color=color, linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(chart.plain)
    axes.set(
        title=f"{options.num_conns:,} requests from {len(results)} Dask workers",
        xlabel=f"latency beyond the delay of {options.delay:g} s, in ms",
        ylabel="share of the answers",
    )
    axes.legend()


def draw_progress(progress, options, axes):
    times, replies = zip(*progress) if progress else ((), ())
    axes.plot(times, replies, color=chart.PYASYNC, marker="o", markersize=2.5)
    axes.yaxis.set_major_formatter(chart.plain)
    axes.set(title="answers so far", xlabel="seconds since the start")


def parse_options():
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--workers", type=positive_int, default=4, help="Dask workers (%(default)s)")
    add("--scheduler", metavar="ADDRESS", help="a scheduler with workers that run already")
    add("--server", help="address of a server that runs already; it needs --port")
    add("--port", type=common.port_to_connect)
    add("--server-workers", type=positive_int, default=2, help="else: its processes (%(default)s)")
    add("--delay", type=delay_time, default=1.0, help="the server's, in seconds (%(default)g)")
    add("--num-conns", type=positive_int, default=10_000, help="in all (%(default)s)")
    add("--rate", type=positive_float, help="connections a second, in all")
    add("--concurrency", type=positive_int, help="how many to keep open, or with --rate the most"
        " (without either: 2,000)")  # fmt: skip
    add("--timeout", type=positive_float, default=60.0, help="seconds a request (%(default)g)")
    add("--svg", type=chart.new_file, metavar="FILE", help="draw the latencies into it")
    add("--verbose", action="store_true", help="let Dask's programs say what they do")
    options = parser.parse_args()
    if (options.server is None) != (options.port is None):
        parser.error("--server and --port go together")
    if not options.rate and not options.concurrency:
        options.concurrency = min(2000, options.num_conns)
    options.tls = False
    return options


def main():
    options = parse_options()
    try:
        import distributed  # noqa: F401
    except ImportError:
        print("distributed is needed: pip install 'pyasync[programs]'", file=sys.stderr)
        return 2
    common.raise_open_files_limit()
    signal.signal(signal.SIGTERM, lambda signo, frame: sys.exit(128 + signo))
    console = Console(as_json=options.json, in_place=sys.stdout.isatty() and not options.json)
    with ExitStack() as stack:
        if options.server is None:
            start_server(stack, options)
        where = (
            {"address": options.scheduler} if options.scheduler else start_cluster(stack, options)
        )
        results, progress = pyasync.aio.run(run_load(options, console, where))
    total = print_results(console, results, options)
    if options.svg:
        draw(options.svg, results, progress, options)
        console.print("svg", "drawn: {path}", path=str(options.svg))
    return 1 if total.replies < options.num_conns else 0


if __name__ == "__main__":
    sys.exit(main())
