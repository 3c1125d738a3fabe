"""A trial in another process or in a pod: it gets a handle, and a server in the searching process answers."""
