"""An asyncio event loop on pyasync's core.

Any asyncio program runs on it unchanged, and so do the objects of the callback API, side by side
with coroutines:

>>> import asyncio, pyasync, pyasync.aio
>>> async def main():
...     future = asyncio.get_running_loop().create_future()
...     pyasync.delay(lambda: future.set_result("from a pyasync timer"), time=0.01)
...     return await future
>>> pyasync.aio.run(main())
'from a pyasync timer'

Nothing in `pyasync` imports this package: a program that does not use it does not load asyncio.
"""

from pyasync.aio.loop import EventLoop
from pyasync.aio.runners import EventLoopPolicy, install, new_event_loop, run

__all__ = ["EventLoop", "EventLoopPolicy", "install", "new_event_loop", "run"]
