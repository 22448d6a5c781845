"""Where figures come from."""

import subprocess

from utils import provenance


def test_the_commit_is_dirty_for_other_code_but_not_for_other_results(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == "unknown"

    def git(*words):
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        return subprocess.run(
            ["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/table.md"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    known = git("rev-parse", "HEAD")[:10]
    assert provenance.commit() == known
    (tmp_path / "results/table.md").write_text("2")
    (tmp_path / "new.txt").write_text("not git's")
    assert provenance.commit() == known
    (tmp_path / "code.py").write_text("2")
    assert provenance.commit() == f"{known}-dirty"
