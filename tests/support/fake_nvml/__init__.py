"""A driver that is not there: libnvidia-ml.so.1 in Python, under the real pynvml.

`driver.py` speaks the library's C interface through ctypes callbacks, so that pynvml's own code
runs, struct layouts and error codes included. `sitecustomize.py` puts it into child processes.
"""
