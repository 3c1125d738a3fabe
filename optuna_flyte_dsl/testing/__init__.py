"""Test helpers for users of the library."""
