"""Apache Kafka's jars on this machine: fetched once by Maven, then found in a cache directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from schemas.errors import LocalError

KAFKA_VERSION: Final = "4.3.1"
JARS_VARIABLE: Final = "MILLRACE__LOCAL__KAFKA_JARS"
"""Environment variable that names another directory for the jars."""

_POM: Final = Path(__file__).with_name("kafka_pom.xml")
_FETCH_S: Final = 300.0


def default_jars_dir() -> Path:
    """Where the jars lie unless told otherwise: ``MILLRACE__LOCAL__KAFKA_JARS``, else the user's cache."""
    named = os.environ.get(JARS_VARIABLE)
    if named:
        return Path(named).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "millrace" / f"kafka-{KAFKA_VERSION}"


def java() -> str:
    """The Java launcher: of ``JAVA_HOME``, else of ``PATH``.

    Raises:
        LocalError: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if found is None:
        where = f"under JAVA_HOME {home}" if home else "on PATH"
        raise LocalError(
            f"Apache Kafka {KAFKA_VERSION}: expected Java 17 or newer, found no `java` {where}; install one, such as "
            "`apt install openjdk-17-jre-headless`, or use the log sqlite:DIRECTORY, which needs none"
        )
    return found


def ensure_jars(directory: Path | None = None) -> Path:
    """The directory of the jars; fetched now (44 MB) where they are missing. Of two that fetch at once one does.

    Args:
        directory: Where they shall lie; by default ``default_jars_dir()``.

    Raises:
        LocalError: Maven is missing or failed, or the directory cannot be written.
    """
    jars = (directory or default_jars_dir()).absolute()
    if _complete(jars):
        return jars
    try:
        jars.parent.mkdir(parents=True, exist_ok=True)
        with (jars.parent / f"{jars.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _complete(jars):
                _fetch(jars)
    except OSError as error:
        raise LocalError(
            f"Kafka's jars in {jars}: expected a directory that can be written, got {error.strerror or error}; name "
            f"another one in {JARS_VARIABLE}"
        ) from error
    return jars


def _complete(jars: Path) -> bool:
    return (jars / f"kafka_2.13-{KAFKA_VERSION}.jar").exists()


def _fetch(jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalError(
            f"Apache Kafka {KAFKA_VERSION}: expected its jars in {jars}, found neither them nor Maven to fetch them; "
            f"install it, such as `apt install maven`, or name a directory that has them in {JARS_VARIABLE}"
        )
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix=f"{jars.name}.") as name:
        # A copy of the pom: Maven may want to write beside it, and the package may be read-only.
        pom = Path(name) / "pom.xml"
        shutil.copyfile(_POM, pom)
        fresh = Path(name) / "jars"
        command = [maven, "-B", "-q", "-f", str(pom), f"-DoutputDirectory={fresh}", "dependency:copy-dependencies"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise LocalError(
                f"Apache Kafka {KAFKA_VERSION}: Maven did not fetch its jars within {_FETCH_S:g} s; look at the "
                "network and try again"
            ) from error
        if done.returncode or not _complete(fresh):
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
            why = said[0] if said else "no reason given"
            raise LocalError(
                f"Apache Kafka {KAFKA_VERSION}: Maven could not fetch its jars: {why}; "
                f"look at the network and at Maven's settings, or name a directory that has them in {JARS_VARIABLE}"
            )
        if jars.exists():
            shutil.rmtree(jars)  # what a fetch of another tool left unfinished
        fresh.rename(jars)
