"""Trials on a Flyte cluster: each call of a trial is an execution."""
