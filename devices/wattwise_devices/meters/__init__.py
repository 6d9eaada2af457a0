"""Meters of power and energy, and sensors of the machine's state: one file each, unknown is None."""
