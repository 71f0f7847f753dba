"""Numeric addresses and their zones, wherever an address may be given."""

import socket
from functools import partial

import pytest
from peers import nothing, number_of

import pyasync

if not socket.has_ipv6:
    pytest.skip("only addresses of IPv6 have zones", allow_module_level=True)


# Each function gives an address to one call, and returns what says whether it was used.


def connect(host, *, end="peername", **options):
    def connected(client):
        used.append(getattr(client, end)[0])
        client.close()
        server.close()

    used = []
    server = pyasync.tcp_server("::1", 0, nothing)
    try:
        pyasync.tcp_connect(host, server.address[1], nothing, connect_cb=connected, **options)
    except ValueError:
        server.close()
        raise
    return used


def connect_from(host, wrap=lambda host: host):
    return connect("::1", end="sockname", local_address=wrap(host))


def connect_tls(host):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        client = pyasync.tcp_ssl_connect(host, listener.getsockname()[1], nothing)
    client.close()
    return ["::1"]


def serve(host):
    server = pyasync.tcp_server(host, 0, nothing)
    server.close()
    return [server.address[0]]


def open_udp(host):
    udp = pyasync.udp_socket(host)
    udp.close()
    return [udp.address[0]]


def connect_udp(host):
    udp = pyasync.udp_socket("::1")
    try:
        udp.connect(host, 9)
        return [udp.peername[0]]
    finally:
        udp.close()


def send(host):
    def read(udp, data, address):
        used.append(address[0])
        udp.close()

    used = []
    udp = pyasync.udp_socket("::1", 0, read)
    try:
        udp.send(b"data", (host, udp.address[1]))
    except ValueError:
        udp.close()
        raise
    return used


def look_up(host, lookup=pyasync.dns_lookup):
    used = []
    lookup(host, lambda *found: used.append("::1" if host in str(found) else found))
    return used


def look_up_name(host):
    used = []
    pyasync.reverse_dns_lookup(host, lambda name, service: used.append("::1" if name else name))
    return used


def join_from(host):
    udp = pyasync.udp_socket("::")
    try:
        udp.join_multicast("ff32::7:7", "lo", source=host)
        udp.leave_multicast("ff32::7:7", "lo", source="::1")
        return ["::1"]
    finally:
        udp.close()


CALLS = {
    "tcp_connect": connect,
    "local_address": connect_from,
    "local_address-port": partial(connect_from, wrap=lambda host: (host, 0)),
    "tcp_ssl_connect": connect_tls,
    "tcp_server": serve,
    "udp_socket": open_udp,
    "udp-connect": connect_udp,
    "udp-send": send,
    "dns_lookup": look_up,
    "dns_lookup_all": partial(look_up, lookup=pyasync.dns_lookup_all),
    "reverse_dns_lookup": look_up_name,
    "join_multicast-source": join_from,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_call
@pytest.mark.parametrize("zone", ["lo", "number"])
def test_a_zone_is_an_interfaces_name_or_its_number(run, call, zone):
    host = f"::1%{number_of('lo') if zone == 'number' else zone}"
    used = []
    run(lambda: used.append(call(host)))
    assert used == [["::1"]]


@each_call
@pytest.mark.parametrize(
    "zone",
    ["nowhere", "", "0", "-1", "4294967295", "4294967296", "1.0", "x" * 20, "\u0661"],
)
def test_a_zone_that_is_no_interface_is_an_error_at_the_call(run, call, zone):
    with run(), pytest.raises(ValueError, match="no interface"):
        call(f"fe80::1%{zone}")
