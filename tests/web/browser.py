"""Debian's Chromium, and axe-core from npm, for the tests of the page."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.impossible import impossible
from tests.servers import LONG

CHROMIUM = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
_AXE = "axe-core@4.14.1"
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en"),
)


class Browser:
    """A tab of Chromium at one service; finds elements by what a person sees of them."""

    def __init__(self, driver: webdriver.Chrome, address: str, axe: str) -> None:
        self.driver = driver
        self.address = address
        self._axe = axe

    def open(self, place: str = "#/", width: int = 1280) -> None:
        """Opens a view in a window of this width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{place}")

    def run(self, script: str) -> Any:
        """What a line of JavaScript gives."""
        return self.driver.execute_script(f"return {script}")

    def text(self) -> str:
        """All that is shown."""
        return str(self.run("document.body.innerText"))

    def wait_for(self, text: str) -> None:
        """Waits until this text is shown."""
        self._until(lambda: text in self.text(), f"{text!r} is not shown")

    def wait_until(self, script: str) -> None:
        """Waits until a line of JavaScript is true."""
        self._until(lambda: bool(self.run(script)), script)

    def wait_until_drawn_again(self) -> None:
        """Waits until the page has asked the service again, and has drawn the answers."""
        asked = "performance.getEntriesByType('resource').filter(each => each.name.endsWith('/summary')).length"
        # The first of both may have begun before; the second one begins when the first is drawn.
        self.wait_until(f"{asked} >= {int(self.run(asked)) + 2}")

    def find(self, selector: str, text: str = "") -> WebElement:
        """The first shown element of a selector that has this text or label."""
        found: list[WebElement] = []

        def look() -> bool:
            try:
                found[:] = [
                    each
                    for each in self.driver.find_elements(By.CSS_SELECTOR, selector)
                    if each.is_displayed() and text in f"{each.text} {each.get_attribute('aria-label') or ''}"
                ]
            except StaleElementReferenceException:
                return False
            return bool(found)

        self._until(look, f"no {selector} with {text!r}")
        return found[0]

    def click(self, selector: str, text: str = "") -> None:
        """Clicks an element; the page may draw it again meanwhile."""
        element = self.find(selector, text)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", element)

    def fill(self, name: str, value: str) -> None:
        """Puts text into the input of this name, as a person types it."""
        element = self.find(f"[name='{name}']")
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(value if value else Keys.DELETE)

    def choose(self, name: str, value: str) -> None:
        """Chooses an option of the select of this name."""
        self.find(f"select[name='{name}'] option[value='{value}']").click()

    def press(self, *keys: str) -> None:
        """Presses keys, whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, text: str) -> None:
        """Presses Tab until an element with this text or label has the focus."""
        seen = []
        for _ in range(120):
            self.press(Keys.TAB)
            shown, is_visible = self.run(
                "[(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || '').trim(),"
                "document.activeElement.matches(':focus-visible')]"
            )
            if self.run("document.activeElement === document.body"):
                continue
            seen.append(shown)
            if text in shown:
                assert is_visible, f"the focus of {text!r} is not shown"
                return
        raise AssertionError(f"Tab does not reach {text!r}: {seen}")

    def problems(self) -> list[str]:
        """What axe-core finds in the present view."""
        self.driver.execute_script(self._axe)
        script = (
            "const [rules, done] = arguments; axe.run(document, {runOnly: rules}).then(found => done(found.violations"
            ".map(each => each.id + ': ' + each.nodes.map(node => node.html.slice(0, 150)).join(' | '))))"
        )
        return list(self.driver.execute_async_script(script, _RULES))

    def is_too_wide(self) -> bool:
        """Whether the page must be scrolled sideways."""
        return bool(self.run("document.documentElement.scrollWidth > innerWidth"))

    def _until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + LONG
        while not condition():
            assert time.monotonic() < end, f"{what}:\n{self.text()[:3000]}"
            time.sleep(0.05)


@contextmanager
def opened(address: str, folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile; ends the test if this machine has none."""
    for program in (CHROMIUM, DRIVER):
        if not Path(program).exists():
            impossible(f"there is no {program}: install chromium and chromium-driver")
    options = Options()
    options.binary_location = CHROMIUM
    for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Driver(DRIVER))
    driver.set_script_timeout(LONG)
    try:
        yield Browser(driver, address, axe_core(folder))
    finally:
        driver.quit()


def axe_core(folder: Path) -> str:
    """The source of axe-core."""
    npm = shutil.which("npm")
    if npm is None:
        impossible("there is no npm, which brings axe-core")
    place = folder / "npm"
    place.mkdir(exist_ok=True)
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place), _AXE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    if done.returncode:
        impossible(f"npm cannot install {_AXE}: {done.stderr[-500:]}")
    return (place / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
