"""Markers, signatures, search spaces and objectives. The package uses no Flyte, no storage and no I/O."""
