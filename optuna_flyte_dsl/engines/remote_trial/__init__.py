"""Trials in other processes or pods: a handle gives a trial's address; the searching process serves the trial."""
