"""The web page in a real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lariat import DEMO_MODEL, LLM

from tests.support.servers import Running, running

pytest.importorskip("selenium", reason="selenium drives the browser")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium and its driver are missing"
)
SECONDS = 30


class Page:
    """The page in a window of its own."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait_until_loaded()

    def wait_until_loaded(self) -> None:
        self.wait(lambda: self.all("#messages[aria-busy=false]"))

    def wait(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, self.driver.find_element(By.TAG_NAME, "body").text
            time.sleep(0.05)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str, property: str = "innerText") -> list[str]:
        """A property of all elements, read at once: the page may replace them at any time."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e[arguments[1]])"
        return [str(text) for text in self.js(script, selector, property)]  # type: ignore[attr-defined]

    def text(self, selector: str) -> str:
        return " ".join(self.texts(selector))

    def click(self, selector: str, text: str = "") -> None:
        """Click the first such element that shows `text`."""
        found = self.js(
            "const all = [...document.querySelectorAll(arguments[0])];"
            "const one = all.find((e) => e.innerText.includes(arguments[1]));"
            "one?.focus(); one?.click(); return one !== undefined",
            selector, text,
        )  # fmt: skip
        assert found, f"no {selector} with {text!r}"

    def say(self, text: str) -> None:
        """Write a message and wait for the whole answer, which the server makes HTML of."""
        n_before = len(self.texts(".message.assistant"))
        self.driver.find_element(By.ID, "input").send_keys(text, Keys.ENTER)
        self.wait(lambda: len(self.texts(".message.assistant")) > n_before and self.is_idle())
        self.wait(lambda: self.texts(".message.assistant .text")[-1])

    def is_idle(self) -> bool:
        return bool(self.js("return document.getElementById('stop').hidden"))

    def messages(self) -> list[str]:
        return self.texts(".message .text")

    def segments(self) -> list[str]:
        return self.texts("#segments .segment", "title")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def raw() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, n_ctx=2048, n_threads=1, cache="raw") as llm:
        yield llm


@pytest.fixture(scope="module")
def server(raw: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(raw, library=str(tmp_path_factory.mktemp("library"))) as server:
        yield server


@pytest.fixture
def guarded(raw: LLM) -> Iterator[Running]:
    with running(raw, api_keys=("secret",)) as server:
        yield server


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Driver(str(DRIVER)), options=options)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, server: Running) -> Iterator[Page]:
    page = Page(driver, server.url + "/")
    # Few tokens, always the same.
    page.click("#show-settings")
    for name, value in (("max_tokens", 12), ("temperature", 0)):
        driver.find_element(By.ID, name).send_keys(str(value))
    page.click("#show-settings")
    yield page
    page.js("localStorage.clear(); sessionStorage.clear()")


def test_a_conversation_with_branches(page: Page) -> None:
    page.say("Once upon a time")
    page.say("there was a dog")
    assert len(page.messages()) == 4
    page.wait(lambda: all(page.messages()))
    page.click(".message.user button", "Edit")
    page.driver.find_element(By.CSS_SELECTOR, ".edit textarea").send_keys(" in a wood")
    page.click(".edit button", "Save")
    page.wait(lambda: page.messages()[:1] == ["Once upon a time in a wood"])
    assert "2 / 2" in page.text(".message.user .who")
    assert len(page.messages()) == 4  # all behind it is there still
    page.click(".branches button", "‹")
    page.wait(lambda: page.messages()[:1] == ["Once upon a time"])
    page.click(".message.assistant:last-of-type button", "Regenerate")
    page.wait(lambda: page.is_idle() and "2 / 2" in page.text(".message.assistant .who"))
    page.driver.refresh()
    page.wait_until_loaded()
    page.wait(lambda: len(page.messages()) == 4)  # the browser keeps the conversation
    page.click(".message.user button", "Delete")
    page.wait(lambda: len(page.messages()) == 3)
    page.click("#new")
    page.wait(lambda: not page.messages())
    assert page.errors() == []


def test_documents_are_added_moved_and_taken_out(page: Page) -> None:
    page.click("#show-documents")
    for name, text in (
        ("fox", "The fox ran into the wood. " * 8),
        ("hen", "A hen had an egg. " * 8),
    ):
        page.driver.find_element(By.ID, "document-name").send_keys(name)
        page.driver.find_element(By.ID, "document-text").send_keys(text)
        page.click("#add-document button")
        page.wait(lambda name=name: name in page.text("#shelf .name"))
    for name in ("fox", "hen"):
        page.click(f"#shelf button[aria-label^='Add {name}']")
    page.wait(lambda: sum("fox" in s or "hen" in s for s in page.segments()) == 2)
    page.click("#show-settings")
    page.click("input[value=placed]")
    page.say("What did the fox do?")
    assert "tokens computed" in page.text("#cost")
    order = [s.split(":")[0] for s in page.segments() if s.startswith(("fox", "hen"))]
    assert order == ["fox", "hen"]
    # By keyboard alone: the first document is chosen and moved behind the other.
    page.click("#segments .segment", "fox")
    keys = ActionChains(page.driver)
    keys.key_down(Keys.ALT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.ALT).perform()
    page.wait(
        lambda: [s[:3] for s in page.segments() if s.startswith(("fox", "hen"))] == ["hen", "fox"]
    )
    page.wait(lambda: "moved" in page.text("#cost"))
    # Both documents are there already.
    assert all(", 0 to compute" in s for s in page.segments() if s.startswith(("fox", "hen")))
    page.click(".message.assistant button", "Compare")
    page.wait(
        lambda: page.is_idle() and page.text("#compare article").count("tokens computed") == 3
    )
    page.click("#compare .close")
    page.click("#segments .segment", "hen")
    ActionChains(page.driver).send_keys(Keys.DELETE).perform()
    page.wait(lambda: not any(s.startswith("hen") for s in page.segments()))
    for name in ("fox", "hen"):
        page.click(f"#shelf button[aria-label^='Remove {name}']")
        page.wait(lambda name=name: name not in page.text("#shelf .name"))
    assert page.errors() == []


def test_an_answer_can_be_stopped(page: Page) -> None:
    page.click("#show-settings")
    page.js("document.getElementById('max_tokens').value = ''")
    page.driver.find_element(By.ID, "max_tokens").send_keys("100000")
    page.driver.find_element(By.ID, "input").send_keys("Once upon a time", Keys.ENTER)
    page.wait(lambda: len(" ".join(page.messages())) > 60)
    page.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    page.wait(page.is_idle)
    assert page.text(".message .error") == ""


def test_what_a_model_writes_is_no_code_of_the_page(page: Page) -> None:
    html = '<img src=x onerror="document.title=1"><script>document.title=2</script>**bold**'
    answer = page.js(
        "const headers = {'Content-Type': 'application/json'};"
        "return fetch('ui/markdown', {method: 'POST', headers,"
        "body: JSON.stringify({text: arguments[0]})}).then((r) => r.json()).then((r) => r.html)",
        html,
    )
    assert "<strong>bold</strong>" in str(answer)
    assert "<img" not in str(answer)
    assert "<script" not in str(answer)
    # Even if it got through, the policy would not run it.
    page.js("document.body.insertAdjacentHTML('beforeend', arguments[0])", html)
    time.sleep(0.3)
    assert page.driver.title == "Lariat"
    page.errors()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_in_both_themes(page: Page, theme: str, tmp_path: Path) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.js("document.documentElement.dataset.theme = arguments[0]", theme)
        page.say("Once upon a time there was a very old and very large house in the wood")
        assert page.js("return document.documentElement.scrollWidth") == 390
        for panel in ("documents", "settings"):
            page.click(f"#show-{panel}")
            assert (
                page.js(f"return document.getElementById('{panel}').getBoundingClientRect().right")
                <= 390
            )
            page.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
            page.wait(lambda panel=panel: not page.driver.find_element(By.ID, panel).is_displayed())
        background = page.js("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(25, 24, 22)") == (theme == "dark")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_the_key(driver: webdriver.Chrome, guarded: Running) -> None:
    driver.get(guarded.url + "/")
    page = object.__new__(Page)
    page.driver = driver
    page.wait(lambda: page.all("dialog[open]"))
    driver.find_element(By.ID, "key").send_keys("secret", Keys.ENTER)
    page.wait(lambda: "context of" in page.text("#model"))
    page.js("sessionStorage.clear()")
