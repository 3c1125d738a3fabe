"""What a search leaves in a study about its process: a record of one that was killed here, and of one that lives."""

import contextlib
import json
import subprocess
import sys
import uuid

from optuna_flyte_dsl.study.session_file import SessionFiles

LIVING = """
import json, sys
from optuna_flyte_dsl.study.session_file import SessionFiles
files = SessionFiles(sys.argv[1], None)
files.open()
print(json.dumps(files.evidence), flush=True)
input()
"""


def record_of(evidence):
    return {"host": "here", "pid": 1, "process": "another", "session": "other", **evidence}


def dead_record():
    """Return what a process has left that ran here and was killed."""
    files = SessionFiles(uuid.uuid4().hex, None)
    files.open()
    record = record_of(files.evidence)
    files.close(is_clean=False)
    return record


@contextlib.contextmanager
def living_process(program=LIVING):
    """Yield a process that holds its session's files, and its record."""
    command = [sys.executable, "-c", program, uuid.uuid4().hex]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process, record_of(json.loads(process.stdout.readline()))
        finally:
            process.kill()
