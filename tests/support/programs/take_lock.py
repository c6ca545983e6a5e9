"""Take a lock and say so, or that it is taken, in a moment, where importing the package would take seconds."""

import sys

import filelock

try:
    with filelock.FileLock(sys.argv[1], blocking=False):
        print("writing", flush=True)
        sys.stdin.read()
except filelock.Timeout:
    print("refused")
