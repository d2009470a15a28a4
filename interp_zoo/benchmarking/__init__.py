"""What recipes/benchmark.py is made of: times of two in turns, and the races."""
