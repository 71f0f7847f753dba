"""An echo server (RFC 862): sends back to each client what it gets from it.

    python examples/echo_server.py --port 7000
    python examples/tcp_client.py 127.0.0.1 7000 hello

SIGTERM ends it when its clients have left, or after half a second. SIGINT (Ctrl-C) ends it at
once.
"""

import argparse
import signal
import sys

import pyasync

GRACE = 0.5  # seconds that clients have to leave, at SIGTERM


def on_data(socket, data):
    socket.write(data)


def on_pressure(socket, paused):
    # A client that sends on and does not take the echo would fill the memory: read no more from
    # it until it does. TCP then slows it down.
    if paused:
        socket.disable(read=True)
    else:
        socket.enable(read=True)


def on_event(event):
    # At the end of a stream nothing is left to do: pyasync sends the rest, and closes the socket.
    if isinstance(event, pyasync.EventError):
        print("error:", event, file=sys.stderr)


def stop(server):
    # Its handler would keep the loop running, and so exit: all that was written is sent by then.
    server.shutdown(GRACE, lambda server: pyasync.exit_event_loop())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7000, help="port; 0: any that is free (%(default)s)"
    )
    options = parser.parse_args()

    with pyasync.event_loop():
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, lambda signo: stop(server))
        try:
            server = pyasync.tcp_server(
                options.host, options.port, on_data, event_cb=on_event, pressure_cb=on_pressure
            )
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = server.address[:2]
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
