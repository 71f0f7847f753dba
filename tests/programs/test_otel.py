"""Metrics of loops for OpenTelemetry, as its SDK reads them and as Prometheus does."""

import asyncio
import gc
import threading
import time
import urllib.request
from functools import partial

import pytest
from peers import PATIENCE, nothing

import pyasync
import pyasync.aio

sdk = pytest.importorskip("opentelemetry.sdk.metrics")
otel = pytest.importorskip("pyasync.otel")
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402

HOUR = 3600.0

ID = "pyasync.eventloop.id"
#: Each metric, its unit, and its attributes besides the loop's number.
METRICS = {
    "pyasync.accept.errors": ("{error}", [{}]),
    "pyasync.connection.count": (
        "{connection}",
        [
            {"network.transport": transport, "pyasync.connection.role": role}
            for transport in ("tcp", "unix")
            for role in ("server", "client")
        ],
    ),
    "pyasync.eventloop.iteration.duration": ("s", [{}]),
    "pyasync.eventloop.iterations": ("{iteration}", [{}]),
    "pyasync.eventloop.slow_callback.duration": ("s", [{"code.function.name": "time.sleep"}]),
    "pyasync.eventloop.time": (
        "s",
        [{"pyasync.eventloop.state": state} for state in ("active", "idle")],
    ),
    "pyasync.eventloop.utilization": ("1", [{}]),
    "pyasync.network.io": (
        "By",
        [{"network.io.direction": direction} for direction in ("receive", "transmit")],
    ),
    "pyasync.pool.request.count": (
        "{request}",
        [{"pyasync.pool.name": name} for name in ("libuv", "work")],
    ),
    "pyasync.timer.count": ("{timer}", [{}]),
}


class Metrics:
    """A meter provider with a reader in memory."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = sdk.MeterProvider(metric_readers=[self.reader])
        #: What was collected last: metrics by name.
        self.found = {}

    def collect(self):
        data = self.reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else ()
        self.found = {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name):
        return self.found[f"pyasync.{name}"].data.data_points

    def value(self, name, *attributes, loop="0"):
        """Return the value whose attributes have these values."""
        (value,) = (
            point.value
            for point in self.points(name)
            if sorted(point.attributes.values()) == sorted([loop, *attributes])
        )
        return value

    def slow(self, name):
        """Return the histogram's point of a callback."""
        (point,) = (
            point
            for point in self.points("eventloop.slow_callback.duration")
            if point.attributes["code.function.name"].endswith(name)
        )
        return point


@pytest.fixture
def metrics():
    metrics = Metrics()
    yield metrics
    metrics.provider.shutdown()


def test_each_metric_has_its_unit_and_attributes(run, metrics):
    with run():
        loop = pyasync.current_loop()
        otel.instrument(loop, metrics.provider)
        pyasync.delay(partial(time.sleep, 0.05))
    assert loop.closed  # its last values are there as long as it is
    metrics.collect()
    found = {
        name: (metric.unit, [dict(point.attributes) for point in metric.data.data_points])
        for name, metric in metrics.found.items()
    }
    # Others than the one that sleeps are slow too on a stalled machine.
    name = "pyasync.eventloop.slow_callback.duration"
    unit, attributes = found[name]
    found[name] = unit, [each for each in attributes if each["code.function.name"] == "time.sleep"]
    assert found == {
        name: (unit, [{ID: "0", **each} for each in attributes])
        for name, (unit, attributes) in METRICS.items()
    }


def test_the_values_are_those_of_the_counters(run, metrics):
    stats = []
    looked = threading.Event()

    def look(socket, data):
        pyasync.work(partial(looked.wait, PATIENCE), nothing)
        pyasync.fs.stat("/", nothing)
        metrics.collect()
        stats.append(pyasync.stats())
        looked.set()
        pyasync.exit_event_loop()

    with run():
        otel.instrument(pyasync.current_loop(), metrics.provider)
        server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: socket.write(b"answer"))
        pyasync.tcp_connect(*server.address, look, data=b"question")
        for _ in range(3):
            pyasync.delay(nothing, time=HOUR)
    value, stats = metrics.value, stats[0]
    assert value("network.io", "receive") == stats.bytes_read >= 14
    assert value("network.io", "transmit") == stats.bytes_written >= 14
    assert value("connection.count", "tcp", "server") == 1
    assert value("connection.count", "tcp", "client") == 1
    assert value("connection.count", "unix", "server") == 0
    assert value("timer.count") == stats.handles["timer"] == 3
    assert value("pool.request.count", "work") == 1
    assert value("pool.request.count", "libuv") == 1
    assert value("eventloop.iterations") == stats.iterations
    assert value("accept.errors") == 0
    assert 0 < value("eventloop.time", "active") <= stats.busy_time


def test_utilization_is_that_of_the_time_since_the_last_collection(run, metrics):
    found = []

    def look():
        metrics.collect()
        found.append(metrics.value("eventloop.utilization"))
        found.append(metrics.value("eventloop.iteration.duration"))

    def start():
        otel.instrument(pyasync.current_loop(), metrics.provider)
        time.sleep(0.5)
        look()
        pyasync.delay(look, time=0.5)

    run(start)
    busy, duration, idle, _ = found
    assert 0.9 < busy <= 1
    assert duration >= 0.4
    assert 0 <= idle < 0.9


def test_a_slow_callback_is_recorded_with_its_name(run, metrics):
    def slow():
        time.sleep(0.05)

    def start():
        otel.instrument(pyasync.current_loop(), metrics.provider)
        pyasync.delay(slow)
        pyasync.delay(slow)

    run(start)
    metrics.collect()
    point = metrics.slow("<locals>.slow")
    assert point.count == 2
    assert 0.1 <= point.sum < 2 * PATIENCE
    assert point.explicit_bounds[0] == 0.025
    assert point.bucket_counts[0] == 0


def test_an_asyncio_loop_is_instrumented(metrics):
    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    async def main():
        otel.instrument(asyncio.get_running_loop(), metrics.provider)
        time.sleep(0.05)
        await asyncio.sleep(0)  # another step begins, which the loop sees from its beginning
        time.sleep(0.05)
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"question")
        assert await reader.readexactly(8) == b"question"
        metrics.collect()
        writer.close()
        server.close()

    pyasync.aio.run(main())
    assert metrics.value("connection.count", "tcp", "server") == 1
    assert metrics.value("network.io", "receive") >= 8
    assert metrics.slow("<locals>.main").sum >= 0.05


def test_a_task_that_fails_is_measured_and_reported_as_in_any_asyncio_loop(metrics):
    """The handles of a loop that is watched run in another way."""
    reported = []

    def fail():
        time.sleep(0.05)
        raise ArithmeticError

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        otel.instrument(loop, metrics.provider)
        await asyncio.sleep(0)
        loop.call_soon(fail)
        loop.call_soon(nothing).cancel()
        await asyncio.sleep(0.01)
        metrics.collect()

    pyasync.aio.run(main())
    assert isinstance(reported[0]["exception"], ArithmeticError)
    assert metrics.slow("<locals>.fail").count == 1


def test_loops_are_told_apart_and_none_is_counted_twice(run, metrics):
    loops = []

    def start():
        loops.append(pyasync.current_loop())
        otel.instrument(loops[-1], metrics.provider)
        otel.instrument(loops[-1], metrics.provider)

    run(start)
    run(start)
    metrics.collect()
    ids = [point.attributes[ID] for point in metrics.points("eventloop.iterations")]
    assert sorted(ids) == ["0", "1"]
    del loops[0]
    gc.collect()
    metrics.collect()
    assert [point.attributes[ID] for point in metrics.points("eventloop.iterations")] == ["1"]


@pytest.mark.parametrize("wrong", [None, 5, "loop"])
def test_only_loops_of_pyasync_are_instrumented(wrong, metrics):
    with pytest.raises(TypeError, match="loop must be a loop of pyasync"):
        otel.instrument(wrong, metrics.provider)


def test_prometheus_scrapes_a_loop(run):
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus")
    prometheus = pytest.importorskip("prometheus_client")
    reader = exporter.PrometheusMetricReader()
    provider = sdk.MeterProvider(metric_readers=[reader])
    server, thread = prometheus.start_http_server(0, "127.0.0.1")
    pages = []

    def scrape():
        url = "http://127.0.0.1:{}/metrics".format(*server.server_address[1:2])
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.read().decode()

    with run():
        otel.instrument(pyasync.current_loop(), provider)
        listener = pyasync.tcp_server("127.0.0.1", 0, nothing)
        pyasync.tcp_connect(
            *listener.address, nothing,
            connect_cb=lambda socket: pyasync.work(scrape, read),
        )  # fmt: skip

        def read(page):
            pages.append(page)
            pyasync.exit_event_loop()

    provider.shutdown()
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE)
    lines = [line for line in pages[0].splitlines() if line.startswith("pyasync_")]
    values = {line.split("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    # Prometheus's names end in a unit; older exporters call that of a share "ratio".
    (share,) = (values[name] for name in values if name.startswith("pyasync_eventloop_utilization"))
    assert 0 <= share <= 1
    assert values["pyasync_eventloop_iterations_total"] > 0
    assert "pyasync_network_io_bytes_total" in values
    (there,) = (line for line in lines if 'role="server"' in line and '"tcp"' in line)
    assert there.endswith(" 1.0")
