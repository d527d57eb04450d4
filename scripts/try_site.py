"""Open the built site in Chromium and check what only a browser can tell.

Installs what it needs: Playwright's driver with pip, Chromium with apt where this may be done. No
browser is downloaded from anywhere else.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def install_browser() -> None:
    """Debian's package, where apt is at hand and we are allowed to use it."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium"]
    for command in (install, ["apt-get", "update", "--quiet"], install):
        subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
        if browser():
            return


def main() -> None:
    """Exit 0 when all is well or no browser can be had, 1 when a check fails, 2 without a site."""
    if not (ROOT / "build" / "site" / "index.html").is_file():
        typer.echo("try_site: build/site is missing; run make site", err=True)
        raise typer.Exit(2)
    if browser() is None:
        install_browser()
    chosen = browser()
    if chosen is None:
        typer.echo("try_site: not done: no Chromium here; install chromium to open the site")
        # Who runs this by hand may have none; a machine that judges changes must have one.
        raise typer.Exit(2 if os.environ.get("CI") else 0)
    if importlib.util.find_spec("playwright") is None:
        needed = str(ROOT / "requirements-browser.txt")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", needed], check=True)
    command = [sys.executable, "-m", "pytest", "-m", "browser", "tests/site"]
    environment = {**os.environ, "CHROMIUM": chosen}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    raise typer.Exit(min(done.returncode, 1))


if __name__ == "__main__":
    typer.run(main)
