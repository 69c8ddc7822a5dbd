"""What everything costs, measured on real servers beside what it is compared with: `python -m tests.benchmarks`.

Both sides of a comparison take turns in one run, and the ratio is the median of the ratios of the rounds: what else the
machine does meanwhile disturbs both. A shortfall is shown, and is no failure: this measures, it doesn't judge.
"""
