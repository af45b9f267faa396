"""Drivers: the stores that memkit can keep conversations in. Each is a leaf of its own."""
