"""The search loop: ask, run, tell, inside the limits. It knows asyncio and Optuna, and no engine."""
