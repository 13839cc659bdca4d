"""Set up where a run computes: device, precision, processes, signals, compiling."""
