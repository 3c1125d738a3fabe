"""The engine that runs trials with flytekit. Only `engines._flytekit` and `_compat.flytekit` import flytekit."""
