"""Library backends beside the libraries themselves. Each file runs in the environment that has its library.

`make test` leaves this folder out; `make test-backends` makes the environments and runs it in each of them.
"""
