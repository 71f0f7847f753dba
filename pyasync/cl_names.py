"""cl-async's functions for which pyasync has methods, for programs that are ported."""

from __future__ import annotations

from typing import Any

from pyasync.fs_events import FsMonitor
from pyasync.processes import Process
from pyasync.threads import Notifier
from pyasync.timers import Interval
from pyasync.watchers import Idler, Poller


def free_notifier(notifier: Notifier) -> None:
    """Free the notifier. Freeing twice does nothing."""
    notifier.free()


def trigger_notifier(notifier: Notifier) -> None:
    """Let the notifier's callback run in its loop; from any thread: see `Notifier.trigger`."""
    notifier.trigger()


def free_idler(idler: Idler) -> None:
    """Close the idler. Closing twice does nothing."""
    idler.close()


def free_poller(poller: Poller) -> None:
    """Close the poller. Closing twice does nothing."""
    poller.close()


def process_kill(process: Process, signo: int) -> bool:
    """Return ``process.kill(signo)``."""
    return process.kill(signo)


def process_input(process: Process) -> Any:
    """Return ``process.input``."""
    return process.input


def process_output(process: Process) -> Any:
    """Return ``process.output``."""
    return process.output


def process_error_output(process: Process) -> Any:
    """Return ``process.error_output``."""
    return process.error_output


def remove_interval(interval: Interval) -> None:
    """Cancel the interval."""
    interval.close()


def fs_monitor_close(monitor: FsMonitor) -> None:
    """Close the monitor: the same as `fs_unwatch`."""
    monitor.close()
