"""A TCP proxy: joins each client with a connection of its own to another server.

    python examples/proxy.py --port 7001 127.0.0.1 7000

What one side sends is passed on to the other, whatever it is. It holds little of it: when a side
does not keep up, the proxy stops to read from the other until it does. When a side ends its stream,
the other is told, and can still answer (half-close). An error on one side closes both.

SIGTERM ends it when its clients have left, or after half a second. SIGINT (Ctrl-C) ends it at
once.
"""

import argparse
import functools
import signal
import sys

import pyasync

CONNECT_TIMEOUT = 10  # seconds
GRACE = 0.5  # seconds that clients have to leave, at SIGTERM


def on_client(client, *, host, port):
    """Connect to the target on behalf of a new client. `data` of each socket is the other."""
    client.data = pyasync.tcp_connect(
        host,
        port,
        on_data,
        event_cb=on_event,
        pressure_cb=on_pressure,
        connect_timeout=CONNECT_TIMEOUT,
        allow_half_open=True,
    )
    client.data.data = client


def on_data(socket, data):
    # The target may not be connected yet: then the data waits, and counts as pressure.
    socket.data.write(data)


def on_pressure(socket, paused):
    # More than 64 KiB wait for this side (see set_watermarks), or, later, less than 16 KiB do.
    source = socket.data
    if source.closed:
        return
    if paused:
        source.disable(read=True)
    else:
        source.enable(read=True)


def on_event(event):
    if isinstance(event, pyasync.SocketAcceptError):
        print("error:", event, file=sys.stderr)
        return
    other = event.socket.data
    if isinstance(event, pyasync.SocketEOF):
        if not other.closed:
            other.shutdown()  # when it has sent what waits; the second of the two closes both
    else:
        print("error:", event, file=sys.stderr)
        other.close()


def stop(server):
    # Their connections to the target end with the clients.
    server.shutdown(GRACE, lambda server: pyasync.exit_event_loop())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target_host", help="host to connect to: a name or an address")
    parser.add_argument("target_port", type=int, help="port to connect to")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7001, help="port; 0: any that is free (%(default)s)"
    )
    options = parser.parse_args()
    if not 1 <= options.target_port <= 65535:
        parser.error("target_port must be from 1 to 65535")

    with pyasync.event_loop():
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, lambda signo: stop(server))
        try:
            server = pyasync.tcp_server(
                options.host,
                options.port,
                on_data,
                connect_cb=functools.partial(
                    on_client, host=options.target_host, port=options.target_port
                ),
                event_cb=on_event,
                pressure_cb=on_pressure,
                allow_half_open=True,
            )
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = server.address[:2]
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
