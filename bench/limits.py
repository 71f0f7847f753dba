"""The limit of open files, and how many connections fit under it: each one is a descriptor."""

import math
import resource

# Descriptors that are no connection: the loop's own, the listener, pipes, open files.
RESERVED = 64

# Linux spreads the connections of a shared port over its listeners by a hash, so the fullest
# process holds more than its share.
UNEVENNESS = 1.25


def raise_open_files_limit():
    """Raise this process's soft limit of open files to the hard one.

    Returns the limit now, and the limit before.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard, soft


def clients_needed(connections, limit):
    """How many processes can open so many connections, which they share out evenly."""
    return max(1, math.ceil(connections / max(1, limit - RESERVED)))


def servers_needed(connections, limit):
    """How many processes on one port can hold so many connections, spread by the kernel."""
    if clients_needed(connections, limit) == 1:
        return 1
    return clients_needed(connections * UNEVENNESS, limit)
