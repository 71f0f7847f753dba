"""What the machine allows, and what it uses: limits before a great load, and memory during it."""

import socket
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20

# Measured on Linux 6.18: two TCP sockets with their files, inodes, directory entries, ports and
# places in epoll sets, and the server's own share, rounded up.
BYTES_PER_CONNECTION = 12_000
BYTES_PER_PROCESS = 20 * MIB  # a server, idle, and its client

# http_load takes an address more for so many. Linux connects from half of its range of ports
# first, and looks for a free one longer and longer as that half fills.
CONNECTIONS_PER_ADDRESS = 10_000

SLABS = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "dentry", "filp",
         "eventpoll_epi", "ep_head", "eventpoll_pwq", "tcp_bind_bucket",
         "tcp_bind2_bucket")  # fmt: skip


def addresses_needed(connections):
    """How many addresses a client connects from."""
    return 1 + connections // CONNECTIONS_PER_ADDRESS


def in_the_way(connections, processes):
    """Why the machine cannot hold so many connections: a list of reasons."""
    reasons = []
    used, _, most = numbers("/proc/sys/fs/file-nr")
    files = 2 * connections + 64 * processes
    if files > most - used:
        reasons.append(
            f"fs.file-max is {most:,}, {used:,} are in use, and {files:,} are needed:"
            f" sysctl fs.file-max={files + used + 10_000}"
        )
    watches = Path("/proc/sys/fs/epoll/max_user_watches")
    if watches.exists() and int(watches.read_text()) < 2 * connections:
        reasons.append(f"fs.epoll.max_user_watches is below {2 * connections:,}")
    memory = connections * BYTES_PER_CONNECTION + processes * BYTES_PER_PROCESS
    available = meminfo()["MemAvailable"]
    if memory > available:
        reasons.append(
            f"{available // MIB:,} MiB of memory are available, and about {memory // MIB:,}"
            " MiB are needed"
        )
    low, high = numbers("/proc/sys/net/ipv4/ip_local_port_range")
    if (high - low + 1) // 2 < min(CONNECTIONS_PER_ADDRESS, connections):
        reasons.append(
            f"net.ipv4.ip_local_port_range is {low}-{high}: an address needs"
            f" {2 * CONNECTIONS_PER_ADDRESS:,} ports"
        )
    tracked = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    if tracked.exists() and int(tracked.read_text()) < connections and tracking():
        reasons.append(f"net.netfilter.nf_conntrack_max is below {connections:,}")
    most_processes = min(numbers("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"))
    if 2 * processes > most_processes:
        reasons.append(f"{2 * processes:,} processes are needed: the open files of each are few")
    return reasons


def tracking():
    """Whether the kernel keeps a record of connections on the loopback."""
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        return int(count.read_text()) > 0


def numbers(*paths):
    return [int(word) for path in paths for word in Path(path).read_text().split()]


def meminfo():
    """The figures of /proc/meminfo, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}


def private_bytes(pid):
    """The memory that only this process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class Memory(NamedTuple):
    """What the machine's memory is used for."""

    used: int  # bytes, all but what is free and what files are cached in
    slab: int
    page_tables: int
    sockets: str  # what /proc/net/sockstat says of TCP
    buffers: int  # of sockets
    slabs: dict  # bytes by name, where this may be read

    @classmethod
    def now(cls):
        info = meminfo()
        sockets = next(
            line
            for line in Path("/proc/net/sockstat").read_text().splitlines()
            if line.startswith("TCP:")
        )
        return cls(
            info["MemTotal"] - info["MemFree"] - info["Buffers"] - info["Cached"],
            info["Slab"],
            info["PageTables"],
            sockets,
            int(sockets.split()[-1]) * 4096,
            slabs(),
        )

    def kernel(self, before):
        """How many bytes the kernel has taken since."""
        return self.slab - before.slab + max(0, self.buffers - before.buffers)

    def slabs_since(self, before):
        return {name: size - before.slabs.get(name, 0) for name, size in self.slabs.items()}

    def table(self, before, connections):
        """What the kernel has taken since, as lines of text."""
        yield f"kernel: {self.sockets}"
        rows = {"slab": self.slab - before.slab, "socket buffers": self.buffers - before.buffers}
        rows["page tables"] = self.page_tables - before.page_tables
        rows.update({f"  {name}": size for name, size in self.slabs_since(before).items()})
        for name, size in rows.items():
            if abs(size) >= connections:  # a byte for each
                yield f"  {name:20} {size / MIB:10,.1f} MiB {size / connections:10,.0f} each"


def slabs():
    """The memory of the kernel's caches that connections fill, as far as it may be read."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:  # only the superuser may
        return {}
    found = {}
    for line in lines:
        name, _, _, _, _, pages_each, *rest = line.split()
        if name in SLABS:
            count_of_slabs = int(rest[rest.index("slabdata") + 2])
            found[name] = count_of_slabs * int(pages_each) * 4096
    return found
