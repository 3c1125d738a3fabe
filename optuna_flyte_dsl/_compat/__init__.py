"""The only place that touches private names of other packages.

Each function here says what it is for, and has a test that fails when a new version moves the name.
"""
