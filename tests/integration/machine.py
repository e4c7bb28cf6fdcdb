"""A machine of its own for tests: the real systemd as process 1 over a throw-away copy of this system.

The root is an overlay whose changes live in memory; processes, mounts, sockets and control groups are the
machine's own. It has this repository and this Python where an installation has them, below /opt.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/visaged/.venv/bin/python"
# an installation has the one in site-packages, and a Python that finds its own library
ENVIRONMENT = ("PYTHONPATH=/opt/visaged/src/typings", "LD_LIBRARY_PATH=/opt/python/lib")
START_S = 20

BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$FOLDER"
mkdir "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root" "$FOLDER/groups"
mount -t cgroup2 cgroup2 "$FOLDER/groups"
mkdir "$FOLDER/groups/$GROUP"
echo $$ > "$FOLDER/groups/$GROUP/cgroup.procs"
exec unshare --cgroup sh -euc '
cd "$FOLDER"
mount -t overlay overlay -o "lowerdir=/,upperdir=upper,workdir=work" root
mount -t tmpfs tmpfs root/dev
mkdir root/dev/shm root/dev/pts
mount -t tmpfs tmpfs root/dev/shm
mount -t devpts devpts root/dev/pts
ln -s pts/ptmx root/dev/ptmx
for name in null zero full random urandom; do
    touch root/dev/$name
    mount --bind /dev/$name root/dev/$name
done
mount -t proc proc root/proc
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
mount -t sysfs -o ro sysfs root/sys
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mkdir -p root/opt/python root/opt/visaged/src root/opt/visaged/.venv/bin root/opt/visaged/.venv/lib root/old
mount --bind "$BASE" root/opt/python
mount --bind "$REPOSITORY" root/opt/visaged/src
mount --bind "$PREFIX/lib" root/opt/visaged/.venv/lib
ln -s "/opt/python/bin/$NAME" root/opt/visaged/.venv/bin/python
printf "home = /opt/python/bin\n" > root/opt/visaged/.venv/pyvenv.cfg
rm -rf root/etc/systemd/system/* root/etc/visaged root/var/lib/visaged root/var/cache/visaged
mkdir -p root/var/cache/visaged
[ ! -d "$CACHE/models" ] || cp -r "$CACHE/models" root/var/cache/visaged/
mkdir -p root/etc/systemd/system.conf.d
printf "[Manager]\nDefaultEnvironment=$ENVIRONMENT\n" > root/etc/systemd/system.conf.d/machine.conf
printf "[Unit]\nDefaultDependencies=no\n" > root/etc/systemd/system/machine.target
cd root
pivot_root . old
umount -l old
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=machine.target --log-target=journal --show-status=0
'
"""

CLEAN_UP = """
mount -t cgroup2 cgroup2 "$FOLDER"
find "$FOLDER/$GROUP" -depth -type d -exec rmdir {} +
"""


class Machine:
    """One running machine; leaving the `with` block ends everything in it."""

    def __init__(self, cache: Path) -> None:
        """Boot; the networks imported into `cache` are there.

        Raises:
            OSError: not allowed here, or something is missing; the message says what.
        """
        self._folder = tempfile.mkdtemp(prefix="visaged-machine-")
        self._environment = {
            **os.environ,
            "FOLDER": self._folder,
            "GROUP": f"visaged-test-{os.getpid()}",
            "BASE": sys.base_prefix,
            "PREFIX": sys.prefix,
            "NAME": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "REPOSITORY": str(ROOT),
            "CACHE": str(cache),
            "ENVIRONMENT": " ".join(ENVIRONMENT),
        }
        line = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child", "sh", "-c", BOOT]
        self._log = Path(self._folder).with_suffix(".log").open("w+")
        self._unshare = subprocess.Popen(
            line, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._pid = self._wait_for_start()
        except OSError:
            self.close()
            raise

    def run(self, *line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root and return what it wrote."""
        enter = ["nsenter", "-t", str(self._pid), "-m", "-p", "-u", "-i", "-C"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *ENVIRONMENT]
        done = subprocess.run([*enter, *clean, *line], capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done

    def write(self, inside: str, text: str) -> None:
        """Write a file of the machine."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def visaged(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `visaged WORDS` in the machine."""
        return self.run(PYTHON, "-m", "visaged.tools.cli", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def path(self, inside: str) -> Path:
        """Return where a file of the machine can be reached from here."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def close(self) -> None:
        """End the machine and all its processes; a second call does nothing."""
        self._unshare.kill()
        self._unshare.wait()
        if not self._log.closed:
            clean_up = ["unshare", "--mount", "sh", "-c", CLEAN_UP]
            deadline = time.monotonic() + 10
            while subprocess.run(clean_up, env=self._environment, capture_output=True).returncode != 0:
                if time.monotonic() > deadline:  # it had none, or the kernel is slow to let go
                    break
            self._log.close()
            Path(self._log.name).unlink()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_start(self) -> int:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        deadline = time.monotonic() + START_S
        while self._unshare.poll() is None and time.monotonic() < deadline:
            pids = children.read_text().split()
            socket = Path(f"/proc/{pids[0]}/root/run/systemd/private") if pids else None
            if socket is not None and socket.exists():
                return int(pids[0])
            time.sleep(0.02)
        self._log.seek(0)
        raise OSError(self._log.read().strip() or "systemd did not start")
