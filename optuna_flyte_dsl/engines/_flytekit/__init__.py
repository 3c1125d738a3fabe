"""The engine that runs trials with flytekit. Of the library's rooms, only `engines._flytekit` imports flytekit."""
