"""The search loop: it asks for trials, runs them and tells their results, within the search's limits.

The loop depends on asyncio and Optuna, and on no engine.
"""
