"""The search loop: ask, run, tell, inside the limits. The loop knows asyncio and Optuna, and no engine."""
