"""Every Python block of the README and of the documentation, imported and run as a user's file would be."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optuna_flyte_dsl.testing.small_searches import SmallSearches

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.newest
LINK = re.compile(r"\]\(([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    code = "\n\n".join(BLOCK.findall(page.read_text()))
    if not code:
        pytest.skip("a page without code")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "page_" + re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
    (tmp_path / f"{name}.py").write_text(code)
    spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    for test in (value for key, value in vars(module).items() if key.startswith("test_")):
        if inspect.signature(test).parameters:
            with SmallSearches() as small:
                test(small_searches=small)
        else:
            test()


@pytest.mark.parametrize(
    "page",
    [each for each in PAGES if "__main__" in "".join(BLOCK.findall(each.read_text()))],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs_as_a_script(page, tmp_path):
    (tmp_path / "page.py").write_text("\n\n".join(BLOCK.findall(page.read_text())))
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True)


def test_the_code_of_the_pages_is_no_wider_than_a_page():
    """At 1280 pixels, a page of the documentation shows lines of 88 characters."""
    for page in PAGES[1:]:
        lines = "\n".join(BLOCK.findall(page.read_text())).split("\n")
        assert not [line for line in lines if len(line) > 88], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_what_is_generated_is_up_to_date():
    """The tables of options come from `Options` and `Cluster`, the picture of the rooms from the import contract."""
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
