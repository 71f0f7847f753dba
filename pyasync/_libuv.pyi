# The extension module, which build_libuv.py makes from csrc/*.cdef.h. CFFI's objects have no
# useful types of their own.
from typing import Any

ffi: Any
lib: Any
