from setuptools import setup

setup(cffi_modules=["build_libuv.py:ffibuilder"])
