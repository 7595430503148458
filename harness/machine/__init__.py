"""QEMU: from a machine profile to a running process, its monitor, its consoles and its traces."""
