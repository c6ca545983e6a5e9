"""Report on this machine: devices, launch, data, speed, and advice."""
