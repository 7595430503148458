"""Integration tests for kernel and hypervisor code, on machines that QEMU emulates."""

__version__ = "0.1.0"
