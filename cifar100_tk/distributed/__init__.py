"""Accelerate and the other processes: launch, collectives, signals, memory and environment."""
