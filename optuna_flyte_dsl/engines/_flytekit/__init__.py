"""The engine of flytekit. Only this room imports flytekit."""
