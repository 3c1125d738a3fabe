"""The language: markers, signatures, search spaces and objectives. Pure: no Flyte, no storage, no I/O."""
