"""The only place that touches private names of other packages.

Each function says what it is for, and has a test that fails if a new release of the package moves the private name.
"""
