import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cnx.errors import InputError
from cnx.report.compare import compare
from cnx.report.page import run_report

SaveRun = Callable[..., Path]
VOID = {"meta", "link", "img", "input", "br", "circle", "path", "use", "rect"}
EVIL = "<script>alert(1)</script> \"a\" 'bird' & </title>"


class Page(HTMLParser):
    """Collects tags, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(save_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of a run and of a comparison, with names and prompts that would like to be more than text."""
    evil = [save_run(f"{i}<b>", prompts=(EVIL, "two"), note=EVIL, seed=i, converged=100) for i in range(2)]
    report = run_report(evil[0])
    out = tmp_path_factory.mktemp("out")
    compare(evil, out, missing={EVIL: EVIL}, title=EVIL)
    return {"run": report.read_text(), "comparison": (out / "report.html").read_text()}


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")) or tag == "a", (tag, name, value)
    assert not page.all("link") and not page.all("iframe")
    style = "".join(re.findall(r"<style>(.*?)</style>", pages[kind], re.DOTALL))
    assert "@import" not in style and "url(" not in style.replace("url(#", "")
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_what_a_user_gives_stays_text(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    assert len(page.all("script")) == 1 and not page.all("b")
    assert "alert(1)" in "".join(page.words) or any("alert(1)" in (a.get("alt") or "") for a in page.all("img"))


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_every_picture_decodes_has_its_size_and_an_alternative_text(kind: str, pages: dict[str, str]) -> None:
    pictures = Page(pages[kind]).all("img")
    assert len(pictures) >= 4
    for picture in pictures:
        source = picture["src"] or ""
        assert source.startswith("data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            image.load()
            assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
        assert picture["alt"]


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_the_slider_is_labelled_and_has_a_place_for_each_step(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    (slider,) = page.all("input")
    assert any(label["for"] == slider["id"] for label in page.all("label"))
    (steps,) = [json.loads(a["data-steps"] or "") for a in page.all("section") if "data-steps" in a]
    assert [step for step, _ in steps] == [0, 100, 200, 300] and slider["max"] == "3"
    for film in [a for a in page.all("div") if a.get("class") == "film"]:
        assert [step for step, _ in json.loads(film["data-frames"] or "")] == [0, 100, 200, 300]


def test_values_of_a_curve_can_be_read_without_scripts(pages: dict[str, str]) -> None:
    assert "<title>fidelity: calibrated control fidelity 0.6 at optimizer step 100, convergence</title>" in pages["run"]


def test_the_number_of_the_literature_is_given_with_its_measure_older_folders_too(save_run: SaveRun) -> None:
    folder = save_run("new")
    said = "The literature's number is 0.123 (floor 0.045, ceiling 0.67): edge F1"
    assert f"{said}; higher is better." in html.unescape(run_report(folder).read_text())
    summary = json.loads((folder / "summary.json").read_text())
    fidelity = summary["control_fidelity"]
    del fidelity["measure"]
    summary["control_fidelity"] = {name.replace("published", "exact"): value for name, value in fidelity.items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert f"{said}, pixel-exact." in html.unescape(run_report(folder).read_text())


def test_an_unfinished_run_says_so(save_run: SaveRun) -> None:
    text = run_report(save_run("half", finished=False)).read_text()
    assert "Not finished: no summary.json; last row of metrics.csv at step 300" in text


def test_a_run_without_pictures_has_a_page_too(save_run: SaveRun) -> None:
    folder = save_run("blind")
    shutil.rmtree(folder / "samples")
    summary = json.loads((folder / "summary.json").read_text())
    del summary["control_fidelity"]
    (folder / "summary.json").write_text(json.dumps(summary))
    page = Page(run_report(folder).read_text())
    assert not page.all("img") and not page.all("input")
    assert any("had no probe" in words for words in page.words)


def test_a_folder_that_is_no_run_gets_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.yaml"):
        run_report(tmp_path)
    assert not list(tmp_path.iterdir())


BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def browsed(file: Path, profile: Path, *options: str) -> Page:
    """What a page has become in a browser, when its scripts have run."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile / 'profile'}"]
    dom = subprocess.run([*command, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True).stdout
    return Page(re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL))


@needs_browser
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_curve_is_read_with_the_arrow_keys_in_the_light_and_in_the_dark(
    kind: str, pages: dict[str, str], tmp_path: Path
) -> None:
    user = """<script>
      const svg = document.querySelector(".figures svg");
      svg.focus();
      const words = () => document.querySelector(".value").textContent;
      const press = (key) => {
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
        return words();
      };
      const read = [press("ArrowRight"), press("ArrowRight"), press("ArrowLeft"), press("ArrowLeft")];
      const {backgroundColor, color} = getComputedStyle(document.body);
      document.title = JSON.stringify([...read, backgroundColor, color]);
    </script></body>"""
    file = tmp_path / "used.html"
    file.write_text(pages[kind].replace("</body>", user))
    colours = {}
    for scheme, setting in (("dark", 0), ("light", 1)):
        page = browsed(file, tmp_path, f"--blink-settings=preferredColorScheme={setting}")
        *read, paper, ink = json.loads(next(words for words in page.words if words.startswith("[")))
        colours[scheme] = paper, ink
        first, second, again, last = read
        assert first == again and len({first, second, last}) == 3
        assert first.endswith("at optimizer step 0") and "at optimizer step 100" in second
    assert colours == {
        "dark": ("rgb(22, 24, 27)", "rgb(236, 236, 234)"),
        "light": ("rgb(255, 255, 255)", "rgb(26, 26, 26)"),
    }


@needs_browser
@pytest.mark.parametrize(
    ("kind", "step", "value"),
    [
        ("run", "step 100, fidelity 0.60", "fidelity: calibrated control fidelity 0.7 at optimizer step 200"),
        ("comparison", "step 100", "test, seed 0: calibrated control fidelity 0.7 at optimizer step 200"),
    ],
)
def test_in_a_browser_the_slider_moves_every_film_and_pointing_reads_the_curve(
    kind: str, step: str, value: str, pages: dict[str, str], tmp_path: Path
) -> None:
    user = """<script>
      const slider = document.querySelector("input");
      slider.value = 1;
      slider.dispatchEvent(new Event("input"));
      const circle = document.querySelectorAll(".hit")[2].getBoundingClientRect();
      const at = {bubbles: true, clientX: circle.x + 8, clientY: circle.y + 5};
      document.querySelector(".figures svg").dispatchEvent(new PointerEvent("pointermove", at));
      document.title = "done";
    </script></body>"""
    file = tmp_path / "used.html"
    file.write_text(pages[kind].replace("</body>", user))
    page = browsed(file, tmp_path)
    assert "done" in page.words, "no script failed before"
    assert step in page.words
    films = [a["style"] or "" for a in page.all("div") if a.get("class") == "film"]
    assert len(films) == 2 and all("--frame: 1" in style for style in films)
    assert value in page.words
