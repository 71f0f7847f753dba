"""What the kernel knows of a process, and the clients that put a load on one."""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import contenders


class Cpu(NamedTuple):
    """The CPU time that a process, all its threads, has used."""

    seconds: float  # exact
    user: int  # in ticks of 10 ms, of use for the proportion
    system: int

    def for_each(self, count, since):
        """The microseconds for each of so many: in all, user and system."""
        each = (self.seconds - since.seconds) * 1e6 / max(1, count)
        user, system = self.user - since.user, self.system - since.system
        return each, each * user / (user + system or 1), each * system / (user + system or 1)


def cpu(pid):
    seconds = time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Cpu(seconds, int(fields[11]), int(fields[12]))


def private_bytes(pid):
    """The memory that only this process has (Private_Clean and Private_Dirty)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def wait_until_held(pid, connections, seconds):
    """Wait until the process has so many descriptors, and rests."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        used = cpu(pid).seconds
        time.sleep(0.2)
        resting = cpu(pid).seconds - used < 0.01
        if resting and len(os.listdir(f"/proc/{pid}/fd")) >= connections:
            return
    raise RuntimeError(f"the server never held {connections:,} connections")


def http_load(cores, port, connections, *options, requests=0, seconds=0.0):
    """Start the client, to run until it has made so many requests or seconds have passed."""
    program = contenders.BASELINE / "http_load"
    return contenders.start([program, *options, port, connections, requests, seconds], cores)


def http_result(client):
    """Wait for the client, and give what it found."""
    with contenders.bounded(client):
        output = client.stdout.read()
        client.wait()
    found = json.loads(output) if output else {"lost": "all"}
    if found["lost"]:
        raise RuntimeError(f"{found['lost']} requests were lost")
    return found


@contextlib.contextmanager
def message_load(program, cores, port, *words):
    """Run echo_load or udp_load. Gives an iterator: first at its beginning, then its result.

    The connections are open until the block ends.
    """
    command = [contenders.BASELINE / program, port, *words]
    with contenders.bounded(contenders.start(command, cores, stdin=subprocess.PIPE)) as client:

        def lines():
            for expected in ("begin", "{"):
                line = client.stdout.readline()
                if not line.startswith(expected):
                    raise RuntimeError(f"{program} has ended with exit status {client.wait()}")
                yield None if expected == "begin" else json.loads(line)

        yield lines()
