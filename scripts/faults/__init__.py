"""What the project does to itself: kills, signals, damage, full disks, NaN. Used by benchmark_faults.py and tests."""
