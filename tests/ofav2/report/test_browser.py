"""The pages in a real headless Chromium: `make test-browser`. Chromium and its driver have to be on the PATH."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import ofav2
from ofav2.exits import calibrate, prune
from ofav2.report import subsets
from ofav2.report.early import PAGE, write_early_page
from ofav2.runs.records import Run
from tests.ofav2.changes import change_facts
from tests.ofav2.conftest import MEASUREMENTS, QUICK

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<b>x</b><script>window.harm = 1</script><img src=x onerror='window.harm = 2'>"
ALL_CHARTS = ["scatter", "cost", "curves", "corners", "agreement", "confusion"]

# Relative luminance and contrast as WCAG 2.2 defines them, of every visible text against the page.
CONTRASTS = """
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const paper = luminance(getComputedStyle(document.body).backgroundColor);
const kinds = "h1, h2, h3, p, td, th, dt, dd, summary, .xtick text, .ytick text, .legendtext";
const texts = [...document.querySelectorAll(kinds)];
return texts.filter(node => node.textContent.trim() && node.getClientRects().length).map(node => {
  const style = getComputedStyle(node), svg = node instanceof SVGElement;
  return [node.textContent.slice(0, 30), contrast(luminance(svg ? style.fill : style.color), paper)];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    assert binary, f"none of {', '.join(BROWSERS)} is on the PATH: install one, as in apt-get install chromium"
    assert driver, "chromedriver is not on the PATH: install it, as in apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run, exits measured."""
    run = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("browser") / "run"))
    ofav2.measure_exits(run)
    return ofav2.write_report(run)


def show(browser: webdriver.Chrome, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Opens a page and waits until its charts are drawn."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    use_scheme(browser, scheme)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.resolve().as_uri())
    WebDriverWait(browser, 30).until(
        lambda chrome: chrome.execute_script("return !document.querySelector('.chart:not([data-drawn])')")
    )


def use_scheme(browser: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def drawn(browser: webdriver.Chrome) -> list[str]:
    """Charts that have marks of data in them."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].filter(n => n.querySelector("
        "'.point, .points path, .js-line, .hm image, .heatmaplayer image')).map(n => n.id)"
    )
    return found


def picked(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "picked").text


def test_every_chart_is_drawn_without_a_complaint_or_a_request(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    assert drawn(browser) == ALL_CHARTS
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page.resolve().as_uri()]


def test_all_measured_networks_are_points(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    tables = browser.execute_script("return payload.tables.map(table => table.networks.length)")
    menu = Select(browser.find_element(By.ID, "table"))
    for index, networks in enumerate(tables):
        menu.select_by_index(index)
        points = browser.execute_script(
            "return document.getElementById('scatter').data.reduce((sum, t) => sum + (t.customdata || []).length, 0)"
        )
        assert points == networks


def test_a_click_shows_the_network_block_by_block(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    # The most expensive network is the largest, and stands alone at the right end.
    spot = browser.execute_script(
        "const n = document.getElementById('scatter'); n.scrollIntoView({block: 'center'});"
        "const t = tables[chosen.table], p = t.networks.length - 1, l = n._fullLayout, box = n.getBoundingClientRect();"
        "return [box.left + l.xaxis._offset + l.xaxis.l2p(Math.log10(networks[t.networks[p]].macs)),"
        " box.top + l.yaxis._offset + l.yaxis.l2p(t.score[p])]"
    )
    before = picked(browser)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        mouse = {"type": kind, "x": spot[0], "y": spot[1], "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", mouse)
    WebDriverWait(browser, 10).until(lambda chrome: picked(chrome) != before)
    largest = browser.execute_script("return networks[tables[chosen.table].networks.at(-1)].name")
    assert largest in picked(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#drawing .stage")) == 5
    assert len(browser.find_elements(By.CSS_SELECTOR, "#drawing .block:not(.off)")) == 10
    assert browser.find_element(By.CSS_SELECTOR, "#drawing .exit.taken").text == "exit 5"


def test_the_drawing_is_the_network(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    for point in range(0, browser.execute_script("return tables[chosen.table].networks.length"), 7):
        browser.execute_script("select(arguments[0])", point)
        network: dict[str, Any] = browser.execute_script("return at(arguments[0]).network", point)
        texts = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#drawing .block:not(.off)")]
        stages = zip(network["kernel"], network["expand"], strict=True)
        blocks = [pair for kernels, expands in stages for pair in zip(kernels, expands, strict=True)]
        for text, (kernel, expand) in zip(texts, blocks, strict=True):
            words = "no MBConv" if kernel is None else f"{kernel}×{kernel} e{expand}"
            assert words in re.sub(r"\s+", " ", text)
        on = [mark.text for mark in browser.find_elements(By.CSS_SELECTOR, "#drawing .branches .on")]
        branches = [branch for stage in network["level"] for block in stage for branch in block]
        assert on == [{"mbconv": "M", "conv": "C", "transform": "T"}[branch] for branch in branches]
        assert browser.find_element(By.CSS_SELECTOR, "#drawing .exit.taken").text == f"exit {network['height']}"


def test_the_keyboard_reaches_and_moves_the_selection(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "scatter"
    keys = browser.switch_to.active_element
    keys.send_keys(Keys.HOME)
    assert browser.execute_script("return chosen.point") == 0
    keys.send_keys(Keys.ARROW_UP)
    assert browser.execute_script("return chosen.point") == 1
    keys.send_keys(Keys.END, Keys.ARROW_UP)
    assert browser.execute_script("return chosen.point === tables[chosen.table].networks.length - 1")
    keys.send_keys(Keys.ARROW_LEFT)
    assert browser.execute_script("return tables[chosen.table].front.includes(chosen.point)")
    keys.send_keys(Keys.TAB, Keys.TAB)
    button = browser.switch_to.active_element
    assert button.tag_name == "button"
    button.send_keys(Keys.ENTER)
    assert browser.execute_script("return chosen.point === tables[chosen.table].front[0]")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#front tr[aria-current]")) == 1


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(browser: webdriver.Chrome, page: Path, width: int) -> None:
    show(browser, page, width=width)
    assert drawn(browser) == ALL_CHARTS
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # What scrolls by itself says so, and nothing else does.
    hints = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map("
        "box => [box.scrollWidth > box.clientWidth + 1, !box.previousElementSibling.hidden])"
    )
    assert hints
    assert all(scrolls == said for scrolls, said in hints)
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg.main-svg')].filter(n => n.clientWidth > innerWidth).length"
    )
    assert wide == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: webdriver.Chrome, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 100
    assert [text for text, contrast in contrasts if contrast < 4.5] == []


def test_the_charts_follow_the_colour_scheme(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    ink = "return document.getElementById('curves').layout.font.color"
    light = browser.execute_script(ink)
    use_scheme(browser, "dark")
    WebDriverWait(browser, 10).until(lambda chrome: chrome.execute_script(ink) != light)


def test_printing_is_light_and_unfolds_the_recipe(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, scheme="dark")
    paper = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert paper.startswith(b"%PDF")
    assert browser.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    assert max(map(int, re.findall(r"\d+", ink))) < 64
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})


def test_a_teacher_from_elsewhere_is_not_said_to_have_exits(browser: webdriver.Chrome, run_copy: Path) -> None:
    def outside(facts: dict[str, Any]) -> None:
        taught = [phase["teacher"] for phase in facts["phases"] if phase["teacher"]["name"]]
        assert len(taught) > 1
        taught[0].update(policy="timm:resnet18", name="timm:resnet18", phase=None, score=0.9)

    change_facts(run_copy, outside)
    show(browser, ofav2.write_report(run_copy))
    told = browser.execute_script(
        "const trace = document.getElementById('curves').data.find(trace => trace.name === 'teacher');"
        "return trace.text.map((name, point) => name + trace.customdata[point])"
    )
    assert "timm:resnet18" in told
    assert "timm:resnet18 with all exits" not in told
    assert any(text.endswith(" largest network with all exits") for text in told)
    assert browser.get_log("browser") == []


def test_a_run_under_way_has_its_charts(browser: webdriver.Chrome, training_run: Path) -> None:
    show(browser, ofav2.write_report(training_run))
    assert drawn(browser) == ["scatter", "cost", "curves", "corners"]
    assert browser.get_log("browser") == []


def test_one_validation_alone_has_an_axis_of_percents(browser: webdriver.Chrome, half_run: Path) -> None:
    lines = (half_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if '"validation"' in line)
    (half_run / "metrics.jsonl").write_text("\n".join(lines[: first + 1]) + "\n", encoding="utf-8")
    show(browser, ofav2.write_report(half_run))
    low, high = browser.execute_script("return document.getElementById('curves').layout.yaxis2.range")
    assert -0.1 <= low < high <= 1.1


def test_a_run_that_has_only_begun_has_no_complaint(browser: webdriver.Chrome, half_run: Path) -> None:
    change_facts(half_run, lambda facts: facts.update(phases=[]))
    (half_run / "metrics.jsonl").unlink()
    show(browser, ofav2.write_report(half_run))
    assert drawn(browser) == []
    assert browser.get_log("browser") == []


def test_hostile_names_do_nothing(browser: webdriver.Chrome, run_copy: Path, tiny_run: Run, tmp_path: Path) -> None:
    def soil(facts: dict[str, Any]) -> None:
        facts.update(name=HOSTILE)
        facts["data"].update(name=HOSTILE, fingerprint="other", classes=[f"{HOSTILE} {number}" for number in range(10)])
        facts["phases"][1]["teacher"].update(name=HOSTILE, reason=HOSTILE)

    change_facts(run_copy, soil)
    named = run_copy.rename(tmp_path / HOSTILE.replace("/", "_"))
    both = ofav2.compare_runs([tiny_run.folder, named], tmp_path / "both.html")
    for page in (ofav2.write_report(named, tmp_path / "one.html"), both.page):
        show(browser, page)
        assert browser.execute_script("return window.harm") is None
        assert browser.get_log("browser") == []
        assert HOSTILE.replace("/", "_") in browser.find_element(By.TAG_NAME, "body").text
    legend = browser.find_elements(By.CSS_SELECTOR, "#fronts .legendtext")
    assert [entry.text for entry in legend] == ["six", named.name]


def test_comparing_draws_a_front_per_run(browser: webdriver.Chrome, tiny_run: Run, run_copy: Path) -> None:
    both = ofav2.compare_runs([tiny_run.folder, run_copy], run_copy / "both.html").page
    for width in (1280, 390):
        show(browser, both, width=width)
        assert browser.execute_script("return document.querySelectorAll('#fronts .scatterlayer .trace').length") == 2
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    # On a phone the settings of all runs are seen without scrolling.
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#settings td')].map(cell => cell.getBoundingClientRect().right)"
    )
    assert all(right <= 390 for right in cells)


@pytest.fixture(scope="module")
def early_page(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a network's early exits, its names hostile."""
    path = tmp_path_factory.mktemp("early") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_IMAGES", 5)
        patch.setattr(calibrate, "ROUNDS", 1)
        ofav2.extract(opened, opened.loaded.net.space.largest(), path, "all", formats=())
        study = ofav2.calibrate_exits(path)
    write_early_page(replace(study, name=HOSTILE, data=HOSTILE), path / PAGE)
    return path / PAGE


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_early_exits_are_drawn_and_can_be_read(
    browser: webdriver.Chrome, early_page: Path, width: int, scheme: str
) -> None:
    show(browser, early_page, width=width, scheme=scheme)
    assert drawn(browser) == ["cost", "shares", "time1", "time64"]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.harm") is None
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [text for text, contrast in browser.execute_script(CONTRASTS) if contrast < 4.5] == []
    assert browser.execute_script("return document.querySelectorAll('#shares .scatterlayer .trace').length") == 5
    assert len(browser.find_elements(By.CSS_SELECTOR, "#rows tr[aria-current]")) == 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_subsets_of_exits_are_drawn_and_can_be_read(
    browser: webdriver.Chrome, subsets_page: Path, width: int, scheme: str
) -> None:
    show(browser, subsets_page, width=width, scheme=scheme)
    assert drawn(browser) == ["macs", "params", "time1", "time64", "agreement"]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.harm") is None
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [text for text, contrast in browser.execute_script(CONTRASTS) if contrast < 4.5] == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "#rows tr[aria-current]")) == 1


@pytest.fixture(scope="module")
def subsets_page(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all subsets of a network's exits, its names hostile."""
    path = tmp_path_factory.mktemp("pruned") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "ROUNDS", 1)
        study = ofav2.prune_exits(tiny_run.folder, out=path, formats=())
    subsets.write_subsets_page(replace(study, name=HOSTILE, data=HOSTILE), path / subsets.PAGE)
    return path / subsets.PAGE


@pytest.fixture(scope="module")
def search_page(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search for three objectives, its names hostile."""
    run = Path(shutil.copytree(searched, tmp_path_factory.mktemp("searched") / "run"))
    names, out = ("top-1", "macs", "params"), run / HOSTILE.replace("/", "_")
    ofav2.search(run, objectives=names, measurements=MEASUREMENTS, out=out)
    return ofav2.write_report(out)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_a_search_is_drawn_and_can_be_read(
    browser: webdriver.Chrome, searched: Path, search_page: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    for page in (search_page, ofav2.write_report(searched / "search", tmp_path / "page.html")):
        show(browser, page, width=width, scheme=scheme)
        assert drawn(browser) == ["scatter", "finalists", "volume", "predicted", "effects"]
        assert browser.get_log("browser") == []
        assert browser.execute_script("return window.harm") is None
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert [text for text, contrast in browser.execute_script(CONTRASTS) if contrast < 4.5] == []
        points = "return document.getElementById('scatter').data.find(t => t.customdata).x.length === networks.length"
        assert browser.execute_script(points)
        assert "undefined" not in browser.find_element(By.TAG_NAME, "main").get_attribute("textContent")


def test_the_adaptation_is_drawn_from_what_was_before_to_what_is(
    browser: webdriver.Chrome, adapted: Path, tmp_path: Path
) -> None:
    show(browser, ofav2.write_report(adapted / "search", tmp_path / "page.html"))
    assert "adaptation" in drawn(browser)
    traces = "return document.getElementById(arguments[0]).data.slice(-2).map(trace => [...trace.y])"
    before, after = browser.execute_script(traces, "adaptation")
    found = ofav2.load_search(adapted / "search")
    assert before == [one.confirmed for one in found.front.finalists]
    assert after == [one.confirmed for one in found.final.finalists] == browser.execute_script(traces, "finalists")[1]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("lowest", [0.0, -1e6])
def test_costs_of_zero_or_less_are_drawn(
    browser: webdriver.Chrome, searched: Path, tmp_path: Path, lowest: float
) -> None:
    plugins = ofav2.SearchPlugins(costs={"over": lambda _, price: max(lowest, price.macs - 250_000.0)})
    run, folders = Path(shutil.copytree(searched, tmp_path / "run")), [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        names = ("top-1", "over")
        ofav2.search(run, objectives=names, measurements=8, settings=QUICK, seed=seed, plugins=plugins, out=folder)
    page, both = ofav2.write_report(folders[0]), ofav2.compare_runs(folders, tmp_path / "both.html").page
    scale = "return document.getElementById(arguments[0])._fullLayout.xaxis.type"
    for path, charts in ((page, ["scatter", "finalists"]), (both, ["fronts"])):
        show(browser, path)
        assert drawn(browser)[: len(charts)] == charts
        assert {browser.execute_script(scale, chart) for chart in charts} == {"linear"}
        titles = "return document.getElementById(arguments[0]).layout.xaxis.title.text"
        assert {browser.execute_script(titles, chart) for chart in charts} == {"over"}
        assert browser.get_log("browser") == []
    show(browser, ofav2.write_report(searched / "search", tmp_path / "page.html"))
    assert browser.execute_script(scale, "scatter") == "log", "costs over zero"


def test_the_front_of_a_search_can_be_walked(browser: webdriver.Chrome, search_page: Path) -> None:
    show(browser, search_page)
    scatter = browser.find_element(By.ID, "scatter")
    scatter.send_keys(Keys.HOME)
    costs = browser.execute_script("return networks.map(costOf)")
    assert browser.execute_script("return costOf(networks[chosen.point])") == min(costs)
    scatter.send_keys(Keys.END, Keys.ARROW_LEFT)
    point = browser.execute_script("return chosen.point")
    assert point in browser.execute_script("return front")
    assert browser.execute_script("return networks[chosen.point].name") in picked(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#drawing .stage")) == 5
    browser.find_element(By.CSS_SELECTOR, "#front button").click()
    assert browser.execute_script("return front.indexOf(chosen.point)") == 0
    assert "confirmed" in picked(browser)
    Select(browser.find_element(By.ID, "cost-menu")).select_by_visible_text("multiply-adds")
    title = "return document.getElementById('scatter').layout.xaxis.title.text"
    assert browser.execute_script(title) == "multiply-adds per image"
    Select(browser.find_element(By.ID, "cost-menu")).select_by_visible_text("parameters")
    assert browser.execute_script(title) == "parameters"


def test_a_search_that_has_only_begun_has_no_complaint(
    browser: webdriver.Chrome, searched: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(searched / "search", tmp_path / "search"))
    (folder / "front.json").unlink()
    (folder / "archive.jsonl").unlink()
    show(browser, ofav2.write_report(folder))
    assert drawn(browser) == []
    assert browser.get_log("browser") == []


def test_comparing_searches_draws_a_front_and_a_curve_each(
    browser: webdriver.Chrome, searched: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(searched / "search", tmp_path / HOSTILE.replace("/", "_")))
    both = ofav2.compare_runs([searched / "search", other], tmp_path / "both.html").page
    for width in (1280, 390):
        show(browser, both, width=width)
        assert drawn(browser) == ["fronts", "volumes"]
        assert browser.execute_script("return document.querySelectorAll('#fronts .scatterlayer .trace').length") == 2
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.find_elements(By.ID, "cost-menu") == []
    assert browser.execute_script("return window.harm") is None
    assert browser.get_log("browser") == []


def test_comparing_searches_for_several_costs_draws_the_chosen_one(
    browser: webdriver.Chrome, search_page: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(search_page.parent, tmp_path / "other"))
    show(browser, ofav2.compare_runs([search_page.parent, other], tmp_path / "both.html").page)
    assert drawn(browser) == ["fronts", "volumes"]
    title = "return document.getElementById('fronts').layout.xaxis.title.text"
    joined = "return document.querySelectorAll('#fronts .scatterlayer .js-line').length"
    assert browser.execute_script(title) == "parameters"
    Select(browser.find_element(By.ID, "cost-menu")).select_by_visible_text("multiply-adds")
    assert browser.execute_script(title) == "multiply-adds per image"
    assert browser.execute_script(joined) == 0, "a front in three objectives is no line over one cost"
    assert browser.get_log("browser") == []
