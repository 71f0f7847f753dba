"""What the tests of pyasync.aio share."""

import asyncio
import inspect

import pytest

import pyasync.aio


@pytest.fixture
def loop():
    """Give a loop, which is closed after the test at the latest."""
    loop = pyasync.aio.new_event_loop()
    yield loop
    if not loop.is_closed():
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine function in its loop, and not for ever."""
    from peers import PATIENCE  # after register_assert_rewrite

    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = pyfuncitem.funcargs
    test = pyfuncitem.obj(**{name: given[name] for name in pyfuncitem._fixtureinfo.argnames})
    given["loop"].run_until_complete(asyncio.wait_for(test, PATIENCE))
    return True
