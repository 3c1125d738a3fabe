"""Trials on a Flyte cluster: each call of a task, workflow or launch plan is an execution."""
