"""Kernels for CPUs, in C++: compiled by `build`, loaded by `library`."""
