"""What each operation costs, measured on real servers next to alternatives: `python -m tests.benchmarks`.

The sides of a comparison take turns in one run, and the ratio is the median of the ratios per round: other load on the
machine then affects all of them. A goal that is missed is shown and is not a failure.
"""
