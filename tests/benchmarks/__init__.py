"""What each operation costs, measured on real servers next to alternatives: `python -m tests.benchmarks`.

The sides of a comparison take turns in one run, and the ratio is the median of the ratios per round: other load on the
machine then affects all of them. A bound that is not held is shown, and the exit code is 1.
"""
