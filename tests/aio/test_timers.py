"""The handles of call_later and call_at among a loop's timers: when they are armed, and fired."""

from collections import deque

import pytest
from interrupts import Interrupt, each_line, raise_interrupt
from test_deadlines import Alarm, FakeEngine, check

from pyasync.aio.handles import HandleDeadlines, TimerHandle

HANDLES = [
    HandleDeadlines.first,
    HandleDeadlines._arm_new,
    HandleDeadlines._take,
    HandleDeadlines._take_handles,
    TimerHandle.cancel,
]


def until_done(step):
    """Take a step again when an interrupt has left it, as a loop does that runs on."""
    while True:
        try:
            return step()
        except Interrupt:
            pass


@pytest.mark.parametrize("act", ["raise", "change"])
def test_a_signal_handler_may_come_at_any_line(act):
    added = []

    def scenario():
        nonlocal deadlines
        ready, others = deque(), []
        deadlines = HandleDeadlines(ready)
        added.clear()
        handles = [new(n) for n in range(8)]
        for handle in handles[:1]:
            until_done(handle.cancel)
        while deadlines.new:  # again for what is added while others are armed
            until_done(deadlines.first)
        check(deadlines)
        late = new(11)
        deadlines.arm(Alarm(lambda: others.append(1)), 4)
        for handle in handles[1:3]:
            until_done(handle.cancel)
        assert deadlines.count() == 7 + len(added) == len(list(deadlines.timers()))
        while deadlines.new:
            until_done(deadlines.first)
        engine = FakeEngine()
        until_done(lambda: deadlines.fire(10**12, engine))
        check(deadlines)
        assert deadlines.armed == deadlines.count() == 0
        expected = [*handles[3:], late, *added]
        assert {id(handle) for handle in ready} == {id(handle) for handle in expected}
        assert len(ready) == len(expected)
        times = [handle._when for handle in ready]
        assert times == sorted(times)
        assert others == [1]

    def new(n):
        handle = TimerHandle(n % 5 / 1000, object(), (), None, deadlines)
        deadlines.new.append(handle)
        return handle

    def change():
        new(3).cancel()
        added.append(new(5))

    deadlines = None
    if act == "raise":
        each_line(scenario, raise_interrupt, *HANDLES)
    else:
        each_line(scenario, change, HandleDeadlines.first, HandleDeadlines._arm_new)
