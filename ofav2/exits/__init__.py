"""Use early exits of an extracted network: predict with them, calibrate thresholds, compare exits."""
