"""What a trainer is kept from: other users' files, more privileges, the daemon's memory, and for ingest the network."""

import grp
import os
import pwd
import resource
from pathlib import Path
from typing import Any, NamedTuple, Self

from fusion_core.parent_death import die_with_parent, libc
from fusion_core.settings import SettingsError

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_OPEN_FILES = 65_536  # shards and sockets of a group of processes; a leak ends before the machine's table is full
_PROCESSES = 16_384  # of a user of its own: threads of all its processes count
_PASSABLE, _OWN_FOLDER, _READABLE = 0o711, 0o700, 0o644


class TrainerUser(NamedTuple):
    """The system user that trainers run as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  # with those that own the GPU's devices

    @classmethod
    def find(cls, name: str) -> Self | None:
        """None: trainers run as the daemon's own user. Raises SettingsError."""
        if not name:
            return None
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise SettingsError([f"FUSION_TRAINER_USER: there is no user {name!r} on this machine"]) from None
        if os.geteuid() != 0:
            raise SettingsError(["FUSION_TRAINER_USER: only a worker that runs as root can start trainers as another"])
        if entry.pw_uid == 0:
            raise SettingsError(["FUSION_TRAINER_USER: root is the user to be kept away from"])
        groups = (group.gr_gid for group in grp.getgrall() if name in group.gr_mem and group.gr_gid != 0)
        return cls(name, entry.pw_uid, entry.pw_gid, tuple(groups))

    def launch_options(self) -> dict[str, Any]:
        """For subprocess: the child takes the user before it calls what `confine` answers."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups, "umask": 0o077}

    def hand_over(self, run_dir: Path, work_dir: Path) -> None:
        """Let the user into its run, into nobody else's, and past the inputs' cache.

        Files stay the daemon's: those linked into the cache serve other jobs, too.
        """
        for folder in (work_dir, run_dir.parent):
            folder.chmod(_PASSABLE)
        (work_dir / "cache").chmod(_OWN_FOLDER)
        for path in (run_dir, *run_dir.rglob("*")):
            if path.is_dir():
                os.chown(path, self.uid, self.gid)
            path.chmod(_OWN_FOLDER if path.is_dir() else _READABLE)


def confine(*, network: bool, own_user: bool) -> None:
    """Called in the child between fork and exec, as the trainer's user. It only makes system calls.

    Nothing it runs can gain privileges, it writes no core file, and it dies with the daemon. Without `network` it gets
    a network of its own with nothing in it, where the kernel lets ordinary users make one (user_namespaces(7)).
    """
    die_with_parent()  # taking another user forgets it (prctl(2)), so this comes after
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    if own_user:  # the limit counts a user's processes: the daemon's would be among them
        _lower(resource.RLIMIT_NPROC, _PROCESSES)
    if libc is not None:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if not network:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _lower(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(limit)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (bound, bound))
