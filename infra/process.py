"""What this process may take of its machine: memory given back, files it may have open."""

from __future__ import annotations

import ctypes

from infra import limits


def trim_memory() -> None:
    """Give the C library's free pages back: many closed files leave many behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def raise_open_files_limit(open_max: int) -> int:
    """Let the process have the files it may need; how many scopes may be open at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = open_max * 6 + limits.CONNECTIONS_MAX + 256
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(16, min(open_max, (soft - 256) // 8))


def limit_process(memory_bytes: int, open_files: int) -> None:
    """Hold the process to so much; 0 is no limit. Linux counts heap and anonymous maps."""
    import resource

    for kind, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_NOFILE, open_files)):
        if most:
            resource.setrlimit(kind, (most, most))


def adopt_orphans() -> bool:
    """Become the parent of whatever processes of ours lose theirs; False where that cannot be."""
    return _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def name_process(name: str) -> None:
    """What `ps` and `top` show, where the system can: up to 15 bytes."""
    _prctl(15, ctypes.c_char_p(name.encode()))  # PR_SET_NAME


def _prctl(option: int, value: object) -> bool:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(option, value, 0, 0, 0) == 0
