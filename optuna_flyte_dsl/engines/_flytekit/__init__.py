"""The engine of flytekit. Of the library's rooms, only `engines._flytekit` imports flytekit."""
