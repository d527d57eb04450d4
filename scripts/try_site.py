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
from typing import NoReturn

import typer

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
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


def install_driver() -> bool:
    """Whether Playwright is there now; pip says itself why not."""
    if importlib.util.find_spec("playwright") is None:
        needed = str(ROOT / "requirements-browser.txt")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--requirement", needed]
        return subprocess.run(command, check=False).returncode == 0
    return True


def give_up(reason: str) -> NoReturn:
    """Leave: who runs this by hand may go without; a machine that judges changes may not."""
    typer.echo(f"try_site: not done: {reason}", err=True)
    raise typer.Exit(2 if os.environ.get("CI") else 0)


def main() -> None:
    """Exit 0 when all is well or no browser can be had, 1 when a check fails, 2 without a site."""
    if not (SITE / "index.html").is_file():
        typer.echo("try_site: build/site is missing; run make site", err=True)
        raise typer.Exit(2)
    if browser() is None:
        install_browser()
    chosen = browser()
    if chosen is None:
        give_up("no Chromium here; install the package chromium")
    if not install_driver():
        give_up("Playwright cannot be installed; see requirements-browser.txt")
    command = [sys.executable, "-m", "pytest", "-m", "browser", "tests/site"]
    environment = {**os.environ, "CHROMIUM": chosen}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    raise typer.Exit(min(done.returncode, 1))


if __name__ == "__main__":
    typer.run(main)
