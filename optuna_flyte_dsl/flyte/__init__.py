"""The only room that imports flytekit's internals."""
