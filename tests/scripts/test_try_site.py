"""Without a site, a browser or a driver: one line, and the exit code that fits who asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from scripts import try_site


def run() -> Result:
    app = Typer(pretty_exceptions_enable=False)
    app.command()(try_site.main)
    return CliRunner().invoke(app, [])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(try_site, "SITE", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "index.html").write_text("x", encoding="utf-8")
    return tmp_path


def test_without_a_site(site: Path) -> None:
    (site / "index.html").unlink()
    done = run()
    assert (done.exit_code, done.output) == (2, "try_site: build/site is missing; run make site\n")


@pytest.mark.parametrize(("ci", "code"), [(False, 0), (True, 2)])
@pytest.mark.parametrize("missing", ["browser", "driver"])
def test_what_cannot_be_installed(
    site: Path, monkeypatch: pytest.MonkeyPatch, missing: str, ci: bool, code: int
) -> None:
    tried: list[str] = []
    found = None if missing == "browser" else "/usr/bin/chromium"
    monkeypatch.setattr(try_site, "browser", lambda: found)
    monkeypatch.setattr(try_site, "install_browser", lambda: tried.append("browser"))
    monkeypatch.setattr(try_site, "install_driver", lambda: tried.append("driver"))  # None: failed
    if ci:
        monkeypatch.setenv("CI", "true")
    done = run()
    assert done.exit_code == code
    assert tried == [missing]
    assert done.output.startswith("try_site: not done: ")
    assert done.output.count("\n") == 1
