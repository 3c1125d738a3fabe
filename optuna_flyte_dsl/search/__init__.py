"""The search loop: it asks for trials, runs them and tells their results, within the search's limits.

The loop knows asyncio and Optuna, and no engine.
"""
