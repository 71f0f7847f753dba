"""``python -m pyasync``: see `pyasync.repl`."""

from pyasync.repl import main

if __name__ == "__main__":
    main()
