"""Pages as a browser shows them, where there is a Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr")  # fmt: skip

MEASURE = "<script>r = document.documentElement; document.title = r.scrollWidth - r.clientWidth</script>"


def show(page, profile, width=900):
    """The page's DOM, and what the browser had to complain of."""
    command = [CHROMIUM, *FLAGS, f"--window-size={width},1200", f"--user-data-dir={profile}", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return shown.stdout, shown.stderr


def overflow(page, scratch, width):
    """By how many pixels the page is wider than a window of this width."""
    measured = scratch / "measured.html"
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    dom, _ = show(measured, scratch / "profile", width)
    return int(re.search(r"<title>(-?\d+)</title>", dom)[1])
