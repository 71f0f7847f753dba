"""Placeholder."""


class AsyncStream:
    def __init__(self, socket):
        self.socket = socket
