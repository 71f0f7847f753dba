"""Protocols that the tests of asyncio's transports share."""

import asyncio
import random


def random_bytes(size):
    return random.Random(size).randbytes(size)


class Recorder(asyncio.Protocol):
    """Notes what it is told, with the arguments; `lost` is a future of connection_lost."""

    def __init__(self):
        self.calls = []
        self.data = bytearray()  # to which much can be added in linear time
        self.keep_open = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data):
        self.data += data

    def eof_received(self):
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def connection_lost(self, error):
        self.calls.append("lost")
        self.lost.set_result(error)


class Buffered(Recorder, asyncio.BufferedProtocol):
    """Gives buffers of a size of its own."""

    size = 1000

    def get_buffer(self, hint):
        self.buffer = bytearray(self.size)
        return self.buffer

    def buffer_updated(self, count):
        Recorder.data_received(self, self.buffer[:count])

    data_received = None


async def in_thread(function, *arguments):
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)
