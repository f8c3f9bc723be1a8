"""The docs site: it builds strictly without a network, and a page needs nothing that does not lie beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(?:src|href)="([^"#][^"]*)"')


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `root`, cut off from the network where the system allows it."""
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")}
    command = [*alone, sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, **nowhere})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site_and_nothing_else(site: Path) -> None:
    pages = {str(page.relative_to(ROOT / "docs").with_suffix(".html")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages | {"404.html"} == {str(page.relative_to(site)) for page in site.rglob("*.html")}
    assert [path.name for path in (site / "make").iterdir()] == ["site.css"]


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    imported = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text("utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not imported.findall(sheet.read_text("utf-8")), sheet


def test_a_link_on_a_page_leads_to_a_file(site: Path) -> None:
    """Counted another way than MkDocs does: over the pages that it wrote."""
    seen = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links count from the root of a server
            continue
        for link in LINK.findall(page.read_text("utf-8")):
            if not re.match(r"\w+:", link):
                assert (page.parent / link.partition("#")[0]).exists(), (page, link)
                seen += 1
    assert seen > 500


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    settings = re.sub(r"^nav:.*", "", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.M | re.S)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    (tmp_path / "beside").mkdir()
    page = tmp_path / "docs/index.md"
    page.write_text("# Page\n\nSee [what is beside](../beside) and [beside/](../beside).\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (
        "See what is beside, <code>beside</code> and <code>beside</code>." in (tmp_path / "site/index.html").read_text()
    )
    for broken in ("[page](none.md)", "[file](../none)", "[place](#none)"):
        page.write_text(f"# Page\n\n{broken}\n", encoding="utf-8")
        done = build(tmp_path, tmp_path / "site")
        assert done.returncode != 0 and "none" in done.stderr, (broken, done.stderr)
