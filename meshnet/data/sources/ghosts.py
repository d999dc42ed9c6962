"""Files and folders that systems, servers and editors leave among the data: no cases, and nothing broken either."""

from pathlib import PurePath

# A leading dot covers .DS_Store, .Trash-1000, .snapshot, .git and the ._NAME that a Mac writes beside every NAME.
LEFT_BEHIND = frozenset({
    "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler", "trash",
    "lost+found", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__",
})
BACKUPS = ("~", "#", ".bak", ".swp", ".swo", ".orig", ".tmp", ".part", ".crdownload", ".icloud")


def is_ghost(name: str) -> bool:
    """Whether a file or folder of this name was left behind by a system, a server or an editor."""
    lower = name.lower()
    return lower.startswith((".", "~$", "$recycle", "#", "@eadir", "@tmp")) or lower in LEFT_BEHIND or lower.endswith(
        BACKUPS)


def ghost_in(path: str) -> str | None:
    """The first part of a relative path that is a ghost, else None; ``.`` and ``..`` are none."""
    return next((part for part in PurePath(path).parts if part not in (".", "..") and is_ghost(part)), None)
