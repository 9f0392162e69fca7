"""The page of a run: its words are those of the files, a hostile name is no HTML, the explorer's numbers are the model's; in a browser (slow)."""

import base64
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, save_random

from configs import consistency, toy
from experiments import explorer, report, runs
from experiments import sample as sampling
from samplers import grids, sample, solvers

HOSTILE = "<img src=x onerror=alert(1)>&\"'"
SHORT = ("--num=20", "--groups=2", "--nfe=3,4", "--batch=64")
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)

DROPPED_ON_PARTICLES = """
const ends = (path, n, i) => at(path, n, i, last);
const errors = Array.from({length: data.particles}, (_, i) => {
  const a = ends(flow(20.5, ...at(paths.ode, data.particles, i, 20.5)), 1, 0);
  return [i, (i + 1) % data.particles].map((j) => Math.hypot(...ends(paths.ode, data.particles, j).map((v, c) => v - a[c])));
});
return [0, 1].map((c) => errors.map((e) => e[c]).sort((a, b) => a - b)[Math.floor(data.particles / 2)]);
"""


class Page(HTMLParser):
    """Tags with their attributes, the text outside of scripts and styles, rows of tables, and what scripts hold."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.words, self.rows, self.scripts, self.inside = [], [], [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, content):
        if self.inside == "script":
            self.scripts.append(content)
        elif self.inside != "style":
            self.words.append(content)
            if self.inside in ("td", "th"):
                self.rows[-1][-1] += content


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A 2-D run of random weights, in a folder with a hostile name, with files as other commands write them."""
    config = config_of(num_classes=0)
    config.data.name = "8gaussians"
    folder = tmp_path_factory.mktemp("runs") / HOSTILE
    save_random(config, folder)
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (2, 4)))
    for name in ("eval", "samples"):
        (folder / name).mkdir()
    row = {"value": 0.123456, "stderr": 0.0078901, "floor": 0.1, "n": 17, "groups": 3, "reference_n": 99}
    metrics = {"solver": HOSTILE, "nfe": 30.0, "seed": 5, "metrics": {"sliced W2": row, HOSTILE: row | {"value": None}}}
    (folder / "eval" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "eval" / "likelihood_test.json").write_text(json.dumps({"n": 31, "unit": "nats", "mean": 2.84567, "stderr_examples": 0.01234}))
    (folder / "samples" / f"{HOSTILE}.json").write_text(json.dumps({"solver": "heun", "steps": 7}))
    return folder


def made(start, workdir, out, *words) -> str:
    """The page that the command writes."""
    command = start("experiments.report", f"--workdir={workdir}", f"--out={out}", *SHORT, *words)
    assert command.wait() == 0, command.said
    return Path(out).read_text()


@pytest.fixture
def content(start, workdir) -> str:
    """The page of the run, made once."""
    out = workdir.parent / "page.html"
    return out.read_text() if out.exists() else made(start, workdir, out)


def test_the_page_says_what_the_files_say(content):
    page = Page(content)
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["sliced W2"] == ["0.1235", "0.00789", "0.1", "17", "3", "99"]
    assert rows["mean"] == ["2.846"] and rows["stderr_examples"] == ["0.01234"]
    assert rows["model.width"] == ["16"] and rows["data.name"] == ["8gaussians"]
    words = " ".join(page.words)
    assert "solver heun; steps 7" in words and "step 1;" in words and "seed 5" in words
    curve = [row for row in page.rows if row and row[0] in ("ddim", "dpm_solver_pp", "heun")]
    assert len({tuple(row[:3]) for row in curve}) == len(curve), "each once, though 3 evaluations are the most of Heun within 4, too"
    assert {(row[0], row[2]) for row in curve} >= {("ddim", "3"), ("ddim", "4"), ("heun", "3")} and all(float(row[4]) > 0 for row in curve)
    assert "python -m experiments" not in words, "nothing is missing"


def test_nothing_of_a_file_is_html_and_nothing_is_fetched(content, workdir):
    page = Page(content)
    assert HOSTILE in "".join(page.words) and HOSTILE in {row[0] for row in page.rows if row}
    assert "<img src=x" not in content and len(page.scripts) == 2
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|import\(", content)
    assert ("img", "x") in {(tag, attributes.get("src")) for tag, attributes in Page(f"<p>{HOSTILE}").tags}, "the parser would see it"
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers) and len(content) < 3e6
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_the_explorer_has_the_models_own_particles_and_fields(content, workdir):
    """Decoded as the page decodes them, at three times: paths to 1e-4, the velocity at the grid's points; the score is -noise/sigma."""
    numbers = json.loads(next(s for s in Page(content).scripts if s.startswith("{")))
    k, n, side = len(numbers["times"]), numbers["particles"], numbers["field"]
    decoded = lambda name, *shape: np.frombuffer(base64.b64decode(numbers[name]), "<f4").reshape(shape)
    ode, velocity = decoded("ode", k, n, 2), decoded("velocity", k, side * side, 2)
    score, sde = decoded("score", k, numbers["arrows"] ** 2, 2), decoded("sde", k, n, 2)
    run = runs.load_run(workdir)
    den, times = run.denoiser(), grids.cosine(run.network.sde, k - 1)
    np.testing.assert_allclose(numbers["times"], times, rtol=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(n))
    x_T = sampling.starts(run)(keys, np.arange(n))
    paths = np.asarray(sample(den, jnp.asarray(x_T), times, solvers.dpm_solver_pp(order=2), path=True))
    np.testing.assert_allclose(ode, paths, atol=1e-4)
    np.testing.assert_array_equal(ode[0], sde[0])
    assert np.abs(ode[-1] - sde[-1]).max() > 0.1
    for i in (0, 30, k - 1):
        points = jnp.asarray(numbers["extent"][i] * explorer.mesh(side), jnp.float32)
        np.testing.assert_allclose(velocity[i], den.velocity(points, jnp.float32(times[i])), atol=1e-3)
        points = jnp.asarray(numbers["extent"][i] * explorer.mesh(numbers["arrows"]), jnp.float32)
        noise = np.asarray(den.noise(points, jnp.float32(times[i])))
        np.testing.assert_allclose(numbers["sigma"][i] * score[i], -noise, rtol=1e-3, atol=1e-3)
    density = np.frombuffer(base64.b64decode(numbers["density"]), np.uint8).reshape(k, numbers["cells"], numbers["cells"])
    assert (density.max((1, 2)) == 255).all()


def test_density_has_x_along_rows_and_y_down_columns():
    points = np.array([1.0, -0.5]) + 0.05 * np.random.default_rng(0).standard_normal((500, 2))
    cells = explorer.density(points, 2.0)
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    at = lambda i: (i + 0.5) / len(cells) * 4 - 2
    assert abs(at(column) - 1.0) < 0.1 and abs(at(row) + 0.5) < 0.1


def test_the_view_moves_only_where_the_scale_does():
    points = np.random.default_rng(0).standard_normal((3, 100, 2))
    assert np.ptp(explorer.extents(points)) == 0 < np.ptp(explorer.extents(points * np.array([80.0, 5.0, 1.0])[:, None, None]))


def test_particles_that_are_not_finite_are_said(workdir, monkeypatch):
    """In place of an explorer that the browser cannot read, and of a page without one."""
    run = runs.load_run(workdir)
    lost = replace(run, params=jax.tree.map(lambda a: a * np.nan, run.params))
    with pytest.raises(ValueError, match="10000 of 10000 particles of the ODE are not finite"):
        monkeypatch.setattr(report.flags, "FLAGS", SimpleNamespace(seed=0))
        report.explored(lost)


@pytest.mark.slow
def test_a_run_of_images(start, tmp_path):
    """Samples and trajectories are pictures, the curve is of FD-clf; fewer evaluations than any solver's, in a folder that is not there yet."""
    save_random(config_of(), tmp_path / "run")
    page = Page(made(start, tmp_path / "run", tmp_path / "page.html"))
    words = " ".join(page.words)
    assert "The explorer is of models of the plane" in words and "FD-clf (" in words and not page.scripts
    assert "dpm_solver_pp, 40 steps" in words and "sde_dpm_solver_pp, 40 steps" in words
    assert sum(tag == "img" for tag, _ in page.tags) >= 4
    content = made(start, tmp_path / "run", tmp_path / "new" / "page.html", "--nfe=1")
    assert "No solver of this curve has at most 1 evaluations" in content


@pytest.mark.slow
def test_same_bytes_twice(start, content, workdir):
    assert made(start, workdir, workdir.parent / "again.html") == content
    assert not [*workdir.glob("report.*.partial")]


@pytest.mark.parametrize(
    "word, said", [("--nfe=ten", "expected numbers"), ("--groups=1", "at least 2"), ("--num=3", "at least 10"), ("--out=.", "expected a file")]
)
def test_mistakes_end_in_one_line(start, workdir, word, said):
    command = start("experiments.report", f"--workdir={workdir}", word)
    assert command.wait() == 1 and said in command.said and "Traceback" not in command.said


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, said", [("ict", ["No explorer", "it has no trajectories", "32 jumps"]), ("ot", ["it has no score and no reverse SDE"])]
)
def test_models_without_a_velocity_or_a_score(start, tmp_path, kind, said):
    """A consistency function and a coupled flow: what they have not is said in a sentence."""
    config = consistency.get_config("ict_8gaussians") if kind == "ict" else toy.get_config("moons")
    config.model.update(width=16, depth=1)
    config.coupling.name = "independent" if kind == "ict" else "ot"
    save_random(config, tmp_path / kind)
    content = made(start, tmp_path / kind, tmp_path / "page.html")
    assert all(words in content for words in said) and len(Page(content).scripts) == (0 if kind == "ict" else 2)
    missing = [f"experiments.{name}" in content for name in ("likelihood", "evaluate", "sample")]
    assert all(missing) and "No loss has been logged" in content


@pytest.fixture(params=[(1200, 900), (390, 844)], ids=["wide", "narrow"])
def browser(request, tmp_path):
    """Chromium, headless and with a fresh profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)  # of the page that it began with
    yield driver
    driver.quit()


@pytest.mark.slow
def test_in_a_browser(browser, content, workdir):
    """No error and no request; the slider, play, clicks, keys and boxes do what they say, in wide and narrow windows."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get((workdir.parent / "page.html").as_uri())
    get = lambda name: browser.find_element(By.ID, name)
    look = lambda: browser.execute_script("return document.getElementById('view').toDataURL()")
    position = lambda: float(get("time").get_property("value"))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith("data:")] == [browser.current_url]
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    def slide(value):
        before = look()
        browser.execute_script(
            "const s = document.getElementById('time'); s.value = arguments[0]; s.dispatchEvent(new Event('input', {bubbles: true}))", value
        )
        return look() != before

    assert not slide(0) and slide(30) and "t = " in get("now").text
    for name in ("density", "score", "ode", "sde"):
        before = look()
        get(name).click()
        after = look()
        get(name).click()
        assert before != after and look() == before, name
    get("density").click()
    get("ode").click()
    before = look()
    canvas = get("view")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    canvas.click()  # its middle
    assert "Dropped: 1" in get("dropped").text and look() != before
    place = lambda: [float(v) for v in re.search(r"\((.*), (.*)\)", get("dropped").text).groups()]
    assert np.abs(place()).max() < 0.05
    start = place()
    assert slide(50) and place() != start
    slide(30)
    assert np.abs(np.subtract(place(), start)).max() < 2e-2, "its path is one function of time"
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    assert "Dropped: 2" in get("dropped").text and place()[0] > start[0] + 0.1
    own, next_one = browser.execute_script(DROPPED_ON_PARTICLES)
    assert own < 0.1 < 0.5 < next_one, "dropped on a particle of the ODE, it ends where that does, in the median, and not where another does"
    get("clear").click()
    assert "Dropped" not in get("dropped").text
    get("ode").click()
    slide(0)
    before = look()
    get("play").click()
    assert get("play").text == "Pause"
    time.sleep(1.0)
    get("play").click()
    assert get("play").text == "Play" and position() > 0 and look() != before
    stopped = position()
    time.sleep(0.3)
    assert position() == stopped
    get("time").send_keys(Keys.END)
    assert position() == 59
    assert not browser.get_log("browser")
