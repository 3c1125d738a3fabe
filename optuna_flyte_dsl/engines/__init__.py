"""Where trials run: on this machine in threads or processes, or wherever a workflow engine runs its tasks."""
