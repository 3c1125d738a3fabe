"""The benchmarks of `make bench`: ratios to the ideal time or to plain Optuna, beside other libraries."""
