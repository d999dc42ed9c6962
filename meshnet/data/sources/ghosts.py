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


def ghost_in(path: str | PurePath, root: str | PurePath) -> str | None:
    """The first part of a path below ``root`` that is a ghost, else None; of a path elsewhere its name alone counts."""
    path = PurePath(path)
    parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
    return next((part for part in parts if part not in (".", "..") and is_ghost(part)), None)
