"""What the tests of pyasync.aio share."""

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
