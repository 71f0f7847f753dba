"""Lookups of names and addresses."""

import os
import socket
from functools import partial

import pytest
from peers import nothing, preloaded, resident_size, run_python

import pyasync

V4, V6, ANY = socket.AF_INET, socket.AF_INET6, socket.AF_UNSPEC
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")

LOOKUPS = {
    "dns_lookup": partial(pyasync.dns_lookup, "localhost"),
    "dns_lookup-numeric": partial(pyasync.dns_lookup, "127.0.0.1"),
    "dns_lookup_all": partial(pyasync.dns_lookup_all, "localhost"),
    "reverse_dns_lookup": partial(pyasync.reverse_dns_lookup, "127.0.0.1"),
}
each_lookup = pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS)


def resolve(run, function, *arguments, **keywords):
    """Return what the callback of a lookup is called with, or the one error that it reports."""
    results, errors = [], []

    with run():
        function(
            *arguments, lambda *found: results.append(found), event_cb=errors.append, **keywords
        )
        assert not results, "called within the call"
        assert not errors
    assert len(results) + len(errors) == 1
    return (results + errors)[0]


def system_order(host, family=ANY):
    """Return the pairs that getaddrinfo(3) gives for a host."""
    found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    return [(where[0], family) for family, *_, where in found]


def names_of_this_system():
    with open("/etc/hosts") as hosts:
        lines = [line.partition("#")[0].split() for line in hosts]
    return sorted({name for line in lines for name in line[1:]} | {socket.gethostname()})


# Names


def test_a_name_is_looked_up(run):
    address, family = resolve(run, pyasync.dns_lookup, "localhost", family=V4)
    assert (address, family) == ("127.0.0.1", V4)


@pytest.mark.parametrize("family", [V4, V6, ANY], ids=["v4", "v6", "any"])
def test_the_addresses_are_the_systems_in_its_order(run, family):
    compared = 0
    for name in names_of_this_system():
        try:
            expected = system_order(name, family)
        except OSError:
            error = resolve(run, pyasync.dns_lookup_all, name, family=family)
            assert isinstance(error, pyasync.DnsError)
        else:
            assert resolve(run, pyasync.dns_lookup_all, name, family=family) == (expected,)
            assert resolve(run, pyasync.dns_lookup, name, family=family) == expected[0]
            compared += 1
    assert compared or family == V6


def test_lookups_run_side_by_side(run):
    found = []

    with run():
        for host in ("localhost", "127.0.0.2", "localhost", "::1"):
            pyasync.dns_lookup(host, lambda address, family: found.append(address), family=ANY)
    assert {"127.0.0.2", "::1"} < set(found)
    assert len(found) == 4


def test_a_thousand_lookups_at_once_are_all_answered(run):
    left = []

    with run():
        for _ in range(1000):
            pyasync.dns_lookup(
                "localhost", lambda *found: left.append(pyasync.stats().open_dns_queries)
            )
        assert pyasync.stats().open_dns_queries == 1000
    assert left == list(range(999, -1, -1))


# Numeric addresses


@pytest.mark.parametrize(
    ("host", "address", "family"),
    [
        ("127.0.0.1", "127.0.0.1", V4),
        ("::1", "::1", V6),
        ("0:0:0:0:0:0:0:1", "::1", V6),
        ("2001:DB8::A", "2001:db8::a", V6),
        ("fe80::1%lo", "fe80::1%lo", V6),
    ],
)
def test_a_numeric_address_takes_no_thread(run, host, address, family):
    def start(asked):
        pyasync.dns_lookup(host, lambda *found: results.append(found), family=asked)
        pyasync.dns_lookup_all(host, lambda *found: results.append(found), family=asked)
        assert pyasync.stats().open_dns_queries == 0
        assert results == []

    for asked in (family, ANY):
        results = []
        run(partial(start, asked))
        assert results == [(address, family), ([(address, family)],)]


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", V6), ("::1", V4)])
def test_a_numeric_address_of_the_other_family_is_an_error(run, host, family):
    error = resolve(run, pyasync.dns_lookup, host, family=family)
    assert isinstance(error, pyasync.DnsError)
    assert error.errno == getattr(socket, "EAI_ADDRFAMILY", error.errno)
    assert host in str(error)


# Failures


@pytest.mark.parametrize("lookup", [pyasync.dns_lookup, pyasync.dns_lookup_all])
@pytest.mark.parametrize(
    "host",
    [
        "name.invalid",
        "n\N{LATIN SMALL LETTER A WITH DIAERESIS}me.invalid",
        "all your children are poor unfortunate victims of lies you believe.",
        "",
        "x" * 70 + ".invalid",
        "x" * 3000,
        "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 3000,
        "\N{LATIN SMALL LETTER A WITH DIAERESIS}..invalid",
    ],
    ids=["name", "idna", "spaces", "empty", "long label", "long", "long idna", "no label"],
)
def test_a_name_that_does_not_exist_is_one_error(run, lookup, host):
    error = resolve(run, lookup, host)
    assert isinstance(error, pyasync.DnsError)
    assert isinstance(error, socket.gaierror)
    assert error.errno in (socket.EAI_NONAME, socket.EAI_AGAIN)
    assert host in str(error)


# Addresses


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "192.0.2.1"])
def test_the_name_of_an_address_is_the_systems(run, ip):
    expected = socket.getnameinfo((ip, 0), 0)
    assert resolve(run, pyasync.reverse_dns_lookup, ip) == expected


@pytest.mark.parametrize("ip", ["192.0.2.1", "fe80::1%lo"])
def test_an_address_without_a_name_is_given_back(run, ip):
    assert resolve(run, pyasync.reverse_dns_lookup, ip) == (ip, "0")


# The request


@each_lookup
def test_a_lookup_that_is_closed_calls_nothing(run, lookup):
    with run():
        request = lookup(lambda *found: pytest.fail("called"), event_cb=pytest.fail)
        assert not request.closed
        request.close()
        assert request.closed
        assert pyasync.stats().open_dns_queries == 0
        request.close()


@each_lookup
def test_a_lookup_is_over_when_its_callback_is_called(run, lookup):
    closed = []

    def called(*found):
        closed.append((request.closed, pyasync.stats().open_dns_queries))
        request.close()

    with run():
        request = lookup(called)
    assert closed == [(True, 0)]
    request.close()


def test_the_callback_of_one_lookup_may_close_all_others(run):
    called = []

    def first(*found):
        called.append(found)
        for request in requests:
            request.close()
        assert pyasync.stats().open_dns_queries == 0

    requests = []
    with run():
        requests.extend(lookup(first) for _ in range(250) for lookup in LOOKUPS.values())
    assert len(called) == 1
    assert all(request.closed for request in requests)


def test_lookups_work_after_a_thousand_were_cancelled(run):
    found = []

    with run():
        for _ in range(1000):
            pyasync.dns_lookup("localhost", pytest.fail).close()
        pyasync.dns_lookup("localhost", lambda *pair: found.append(pair))
        assert pyasync.stats().open_dns_queries == 1
    assert len(found) == 1


def test_a_lookup_is_over_when_its_event_cb_is_called(run):
    told = []

    def event_cb(error):
        told.append((type(error), request.closed, pyasync.stats().open_dns_queries))

    with run():
        request = pyasync.dns_lookup("name.invalid", pytest.fail, event_cb=event_cb)
    assert told == [(pyasync.DnsError, True, 0)]


# Leaving the loop


@each_lookup
@pytest.mark.parametrize("number", [1, 1000])
def test_the_loop_can_be_left_while_lookups_run(run, lookup, number):
    requests = []
    with run():
        loop = pyasync.current_loop()
        requests.extend(lookup(pytest.fail, event_cb=pytest.fail) for _ in range(number))
        pyasync.exit_event_loop()
    assert loop.stats().open_dns_queries == 0
    for request in requests:
        assert request.closed
        request.close()


RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

  *(void **) &next = dlsym(RTLD_NEXT, "getaddrinfo");
  if (host == NULL || strstr(host, ".slow") == NULL)
    return next(host, service, hints, found);
  if (write(1, "(", 1) != 1)
    return EAI_FAIL;
  usleep(strcmp(host, "very.slow") == 0 ? 6000000 : strcmp(host, "rather.slow") == 0 ? 4000000
                                                                                   : 50000);
  if (write(1, ")", 1) != 1)
    return EAI_FAIL;
  return next("127.0.0.1", service, hints, found);
}

int getnameinfo(const struct sockaddr *address, socklen_t size, char *host, socklen_t host_size,
                char *service, socklen_t service_size, int flags) {
  int (*next)(const struct sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int);

  *(void **) &next = dlsym(RTLD_NEXT, "getnameinfo");
  if (flags & NI_NUMERICHOST)
    return next(address, size, host, host_size, service, service_size, flags);
  strcpy(host, "caf\\351.example");
  strcpy(service, "0");
  return 0;
}
"""


@pytest.fixture(scope="module")
def slow_resolver(tmp_path_factory):
    """Give a function that runs a program in which names that end in .slow take their time."""
    environment = preloaded(tmp_path_factory.mktemp("resolver"), RESOLVER)

    def run_program(program):
        return run_python("-W", "always", "-c", "import pyasync\n" + program, env=environment)

    return run_program


def test_two_of_the_four_threads_are_for_lookups_at_most(slow_resolver):
    result = slow_resolver("""if True:
        def start():
            for _ in range(6):
                pyasync.dns_lookup("some.slow", lambda *found: found)
        pyasync.start_event_loop(start)
    """)
    assert (result.returncode, result.stderr) == (0, "")
    depth = [result.stdout[:end].count("(") - result.stdout[:end].count(")") for end in range(13)]
    assert result.stdout.count("(") == 6
    assert max(depth) == 2


def test_a_lookup_that_does_not_end_does_not_hold_up_the_end_of_the_loop(slow_resolver):
    result = slow_resolver("""if True:
        def start():
            for _ in range(100):
                pyasync.dns_lookup("very.slow", lambda *found: print("called"))
            pyasync.delay(pyasync.exit_event_loop, time=1)
        with pyasync.event_loop() as loop:
            start()
        print("left with", loop.stats().open_dns_queries, flush=True)
        with pyasync.event_loop():
            pyasync.dns_lookup("127.0.0.1", print)
    """)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("ResourceWarning") == 1
    # libuv's threads are joined when the process ends.
    assert result.stdout.startswith("((left with 0\n")
    assert "127.0.0.1 " in result.stdout
    assert "called" not in result.stdout


def test_a_name_that_is_not_utf_8_is_decoded_as_the_system_s_text_is(slow_resolver):
    result = slow_resolver("""if True:
        with pyasync.event_loop():
            pyasync.reverse_dns_lookup("192.0.2.1", lambda *found: print(ascii(found)))
    """)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "('caf\\udce9.example', '0')\n"


def test_a_lookup_that_is_closed_while_a_thread_runs_it_calls_nothing(slow_resolver):
    result = slow_resolver("""if True:
        def start():
            lookup = pyasync.dns_lookup("rather.slow", lambda *found: print("called"))
            pyasync.delay(lambda: (lookup.close(), print(pyasync.stats().open_dns_queries)),
                          time=1)
        pyasync.start_event_loop(start)
    """)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.replace("\n", "")) == ["(", ")", "0"]


# Memory


def look_up(run, number):
    """Run so many lookups, of each kind, some of which fail or are closed."""
    left = number // 5

    def again(*ignored):
        nonlocal left
        if left > 0:
            left -= 1
            begin()

    def begin():
        pyasync.dns_lookup("localhost", again)
        pyasync.dns_lookup_all("localhost", nothing, family=V4)
        pyasync.reverse_dns_lookup("127.0.0.1", nothing)
        pyasync.dns_lookup("x" * 300, nothing, event_cb=nothing)
        pyasync.dns_lookup("localhost", pytest.fail).close()

    with run(limit=300):
        for _ in range(50):
            again()


@pytest.mark.skipif(SANITIZED, reason="the sanitizers keep what is freed")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize(
    "number", [20_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_lookups_leave_no_memory_behind(run, number):
    look_up(run, 10_000)
    before = resident_size()
    look_up(run, number)
    # A request alone takes some 300 bytes of C's.
    assert resident_size() - before < 100 * number
