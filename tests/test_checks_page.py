"""The page of what is checked, refused and said is what the code says."""

import runpy


def test_the_page_is_written_from_the_code(root):
    composed = runpy.run_path(str(root / "docs" / "checks.py"))["compose"]()
    assert composed == (root / "docs" / "checks.md").read_text(encoding="utf-8"), "run python docs/checks.py"
    for phrase in ("the grid was enlarged", "was not written by this program", "the header contradicts itself",
                   "lie outside the", "to overlap", "the mask is soft"):
        assert phrase in composed, phrase
