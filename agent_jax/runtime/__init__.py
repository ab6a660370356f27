"""What lies between a program and its machine: processes, devices, compilers, locks, stop signals."""
