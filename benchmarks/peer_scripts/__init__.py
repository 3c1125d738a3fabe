"""One program for each peer that needs an environment of its own: `python ray_tune.py TRIALS AT_ONCE SECONDS`.

Each program runs a small search first, so that what a process does only once is not measured. Then it runs a search of
trials that only wait, and prints the seconds of the search. A peer may keep its
processes, and looks for finished trials often.
"""
