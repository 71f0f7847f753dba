"""cl-async's functions for which pyasync has methods, for programs that are ported."""

from __future__ import annotations

from pyasync._core.arguments import require_instance
from pyasync.async_stream import AsyncStream
from pyasync.fs_events import FsMonitor
from pyasync.processes import Process, ProcessPipe
from pyasync.threads import Notifier
from pyasync.timers import Interval
from pyasync.watchers import Idler, Poller


def free_notifier(notifier: Notifier) -> None:
    """Free the notifier. Freeing twice does nothing."""
    require_instance("notifier", notifier, Notifier)
    notifier.free()


def trigger_notifier(notifier: Notifier) -> None:
    """Let the notifier's callback run in its loop; from any thread: see `Notifier.trigger`."""
    require_instance("notifier", notifier, Notifier)
    notifier.trigger()


def free_idler(idler: Idler) -> None:
    """Close the idler. Closing twice does nothing."""
    require_instance("idler", idler, Idler)
    idler.close()


def free_poller(poller: Poller) -> None:
    """Close the poller. Closing twice does nothing."""
    require_instance("poller", poller, Poller)
    poller.close()


def process_kill(process: Process, signo: int) -> bool:
    """Return ``process.kill(signo)``."""
    require_instance("process", process, Process)
    return process.kill(signo)


def process_input(process: Process) -> ProcessPipe | AsyncStream | None:
    """Return ``process.input``."""
    require_instance("process", process, Process)
    return process.input


def process_output(process: Process) -> ProcessPipe | AsyncStream | None:
    """Return ``process.output``."""
    require_instance("process", process, Process)
    return process.output


def process_error_output(process: Process) -> ProcessPipe | AsyncStream | None:
    """Return ``process.error_output``."""
    require_instance("process", process, Process)
    return process.error_output


def remove_interval(interval: Interval) -> None:
    """Cancel the interval."""
    require_instance("interval", interval, Interval)
    interval.close()


def fs_monitor_close(monitor: FsMonitor) -> None:
    """Close the monitor: the same as `fs_unwatch`."""
    require_instance("monitor", monitor, FsMonitor)
    monitor.close()
