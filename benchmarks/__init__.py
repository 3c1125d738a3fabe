"""What `make bench` measures: ratios to the ideal or to the bare operation, with the peers in the same run."""
