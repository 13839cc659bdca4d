"""Where a run computes: device, precision, processes, signals, compiling."""
