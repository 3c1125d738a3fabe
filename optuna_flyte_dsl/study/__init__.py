"""Where trials are kept, and which process runs them."""
