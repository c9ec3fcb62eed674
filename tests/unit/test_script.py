"""Every mistake that an author can make in a script ends in one message: what is wrong, where, what is right."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.app import App
from mlpkit.errors import DeclarationError
from mlpkit.log import LogLine, logger
from mlpkit.script import import_app, target_of
from tests.servers import LONG

HEAD = """\
from __future__ import annotations
from typing import Annotated
import msgspec
from mlpkit import App, Depends, Log, ModelDir
from mlpkit.injection import service
app = App("a")
@service("train")
class Ledger: ...
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "script.py", head: str = HEAD) -> int:
    """Writes a script; gives the line of the first `# <-` in it (0 where there is none)."""
    whole = head + textwrap.dedent(text)
    (folder / name).write_text(whole, encoding="utf-8")
    return next((number for number, line in enumerate(whole.splitlines(), 1) if "# <-" in line), 0)


def message_of(target: str) -> str:
    with pytest.raises(DeclarationError) as caught:
        import_app(target).build()
    return str(caught.value)


LOAD = "@app.load\ndef load(model_id): ...\n"

WRAP = """
import functools
def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
class Timed:
    def __init__(self, function):
        functools.update_wrapper(self, function)
    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)
"""

# What is wrong: the script, and what the message must say besides the file and the line that `# <-` marks.
MISTAKES: dict[str, tuple[str, list[str]]] = {
    "a parameter that is no field": (
        LOAD + "@app.predict  # <-\ndef predict(model, feature): ...",
        ["predict", "no field 'feature'", "did you mean 'features'?", "model, features, params, model_id, uuid", "Log"],
    ),
    "a field of another hook": (
        "@app.train  # <-\ndef train(features): ...",
        ["no field 'features'", "it exists in: predict"],
    ),
    "a predict without a load": ("@app.predict  # <-\ndef predict(model): ...", ["no load", "@app.load"]),
    "a lambda": ("app.train(lambda data: None)  # <-", ["@app.train decorates a lambda", "a named function"]),
    "a method": ("class Mine:\n    @app.train  # <-\n    def train(self): ...", ["Mine.train, a method"]),
    "a class": ("@app.load  # <-\nclass Mine: ...", ["class Mine", "a plain function"]),
    "no function at all": ("app.unload(5)  # <-", ["@app.unload decorates 5, which is not a function"]),
    "an option by position": ("@app.train(4)  # <-\ndef train(): ...", ["takes its options by name, not 4"]),
    "a batch that is annotated as one item": (
        LOAD + "@app.predict(max_batch_size=8)  # <-\ndef predict(model, features: dict): ...",
        ["'features' is a list", "list[dict], not dict"],
    ),
    "a list without batches": (
        LOAD + "@app.predict  # <-\ndef predict(model, features: list[dict]): ...",
        ["'features' is one object in every request, not a list", "@app.predict(max_batch_size=32)", "annotate dict"],
    ),
    "any list without batches": (
        LOAD + "@app.predict  # <-\ndef predict(model, features: list): ...",
        ["'features' is one object in every request, not a list", "@app.predict(max_batch_size=32)", "annotate dict"],
    ),
    "a text as features": (
        LOAD + "@app.predict  # <-\ndef predict(model, features: str): ...",
        ["'features' is a JSON object in every request, which cannot become str", "annotate dict"],
    ),
    "texts as features of a batch": (
        LOAD + "@app.predict(max_batch_size=8)  # <-\ndef predict(model, features: list[str]): ...",
        ["'features' is a JSON object in every request, which cannot become str"],
    ),
    "a number as parameters": (
        "@app.train  # <-\ndef train(parameters: int): ...",
        ["'parameters' is a JSON object in every request, which cannot become int"],
    ),
    "a number as id": (
        "@app.load  # <-\ndef load(model_id: int): ...",
        ["'model_id' is a text in every request, which cannot become int"],
    ),
    "a model folder that train does not make": (
        "@app.train\ndef train(data: dict): ...\n@app.load  # <-\ndef load(files: ModelDir): ...",
        ["load asks for ModelDir, but train", "stores no model", "`out: ModelDir`"],
    ),
    "a plain function around an async one": (
        LOAD + WRAP + "@app.predict  # <-\n@timed\nasync def predict(model): ...",
        ["predict", "`async def`", "functools.wraps", "never be awaited"],
    ),
    "an object around an async function": (
        LOAD + WRAP + "@app.predict  # <-\n@Timed\nasync def predict(model): ...",
        ["predict", "`async def`", "functools.wraps", "never be awaited"],
    ),
    "a plain function around a generator": (
        WRAP + "@app.load  # <-\n@timed\ndef load():\n    yield 1",
        ["load", "yields", "never be resumed", "`yield from`"],
    ),
    "two hooks of one name": (
        "@app.train\ndef one(): ...\n@app.train  # <-\ndef two(): ...",
        ["two", "'a' has its train already: one (script.py, line 9)"],
    ),
    "two algorithms of one name": (
        "@app.train\ndef train(): ...\nother = app.algorithm('a')  # <-",
        ["another algorithm named 'a': script.py, line 6"],
    ),
    "an unknown kind": (
        "ner = app.algorithm('ner', kind='text_clasification')  # <-",
        ["no kind 'text_clasification'", "did you mean 'text_classification'?", "text_cluster"],
    ),
    "a name that is too long": ("app.algorithm('n' * 33)  # <-", ["1 to 32 printable characters"]),
    "a bad option value": ("@app.train(cpus=0)  # <-\ndef train(): ...", ["cpus=0", "whole number of at least 1"]),
    "a bad size": ("@app.train(memory='2 gigs')  # <-\ndef train(): ...", ["memory='2 gigs'", "64MiB or 10GiB"]),
    "a time-out of no time": ("@app.predict(timeout=0)  # <-\ndef predict(): ...", ["timeout=0", "above 0"]),
    "preload as a string": ("@app.load(preload='m1')  # <-\ndef load(): ...", ["a list of model ids: ['m1']"]),
    "an unknown option": (
        "@app.predict(max_batchsize=4)  # <-\ndef predict(): ...",
        [
            "no option 'max_batchsize'",
            "did you mean 'max_batch_size'?",
            "max_batch_size, max_wait_ms, threads, timeout",
        ],
    ),
    "a service in a wrong hook": (
        "@app.load  # <-\ndef load(ledger: Ledger): ...",
        ["asks for Ledger, which @app.load does not have", "exists in: train"],
    ),
    "star arguments": ("@app.train  # <-\ndef train(*args): ...", ["'*args' cannot be filled"]),
    "keyword arguments": ("@app.train  # <-\ndef train(**rest): ...", ["'**rest' cannot be filled"]),
    "dependencies in a circle": (
        """
        def one(x: Annotated[int, Depends(lambda: 0)]): ...  # <-
        def two(x: Annotated[int, Depends(one)]): ...
        one.__annotations__["x"] = Annotated[int, Depends(two)]
        @app.train
        def train(x: Annotated[int, Depends(one)]): ...
        """,
        ["circle", "one -> two -> one"],
    ),
    "an async factory": (
        "async def make(): ...  # <-\n@app.train\ndef train(x: Annotated[int, Depends(make)]): ...",
        ["make", "not async"],
    ),
    "a factory that is called": (
        "@app.train  # <-\ndef train(x: Annotated[int, Depends(5)]): ...",
        ["Depends of parameter 'x' needs a function, not 5"],
    ),
    "an unknown scope": (
        "@app.train  # <-\ndef train(x: Annotated[int, Depends(int, scope='proces')]): ...",
        ["scope='proces'", "did you mean 'process'?"],
    ),
    "a process-wide factory that takes a field": (
        "def make(model_id): ...  # <-\n@app.train\ndef train(x: Annotated[int, Depends(make, scope='process')]): ...",
        ["once per process", "model_id"],
    ),
    "a process-wide factory that takes a service of one call": (
        """
        def make(book: Ledger): ...  # <-
        @app.train
        def train(x: Annotated[int, Depends(make, scope='process')]): ...
        """,
        ["once per process", "book"],
    ),
    "Depends as a default": (
        "@app.train  # <-\ndef train(x: int = Depends(int)): ...",
        ["as its default value", "x: Annotated[T, Depends(factory)]"],
    ),
    "a type that is no JSON": (
        "import decimal, pathlib\n@app.train  # <-\ndef train(data: list[pathlib.Path]): ...",
        ["'data' cannot be made from JSON", "msgspec.Struct"],
    ),
    "a name that exists for type checkers only": (
        """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from decimal import Decimal
        @app.train  # <-
        def train(data: Decimal): ...
        """,
        ["'Decimal'", "TYPE_CHECKING"],
    ),
    "an include of no app": ("app.include(app.algorithm('b'))  # <-", ["include takes apps"]),
    "an include of itself": ("other = App('b').include(app)\napp.include(other)  # <-", ["includes itself"]),
    "a train that yields": ("@app.train  # <-\ndef train():\n    yield", ["only load", "may yield"]),
    "a misspelt decorator": (
        "@app.trian  # <-\ndef train(): ...",
        ["no attribute 'trian', did you mean 'train'?", "decorators: train, load, predict"],
    ),
    "an unknown argument of App": (
        "other = App('b', knd='text_custom')  # <-",
        ["unexpected keyword argument 'knd'", "name, kind, examples"],
    ),
    "examples that are no list": ("app.algorithm('b', examples={'x': 1})  # <-", ["examples", "a list of features"]),
    "an exception in the script": ("raise ValueError('no such luck')  # <-", ["ValueError: no such luck"]),
    "an exit in the script": ("raise SystemExit(3)  # <-", ["SystemExit: 3", 'below if __name__ == "__main__":']),
    "a missing package": ("import sklearnn  # <-", ["ModuleNotFoundError", "sklearnn"]),
    "a fault far below the script": ("import json\njson.loads('{')  # <-", ["JSONDecodeError"]),
    "a syntax error": ("def broken(:  # <-\n    ...", ["SyntaxError", "cannot be imported"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_is_right(mistake: str, tmp_path: Path) -> None:
    script, expected = MISTAKES[mistake]
    line = write(tmp_path, script)

    message = message_of("script:app")

    for part in expected:
        assert part in message
    # Before 3.11, Python told for a decorator's call the line of what it decorates, which is the next one here.
    lines = f"({line}|{line + 1})" if sys.version_info < (3, 11) else str(line)
    assert re.search(rf"\bscript\.py, line {lines}\b", message)


def test_the_message_names_the_function(tmp_path: Path) -> None:
    write(tmp_path, "@app.train\ndef teach(*args): ...")

    assert message_of("script:app").startswith("teach (script.py, line 9): ")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "@app.train(cpus=0)\ndef train(featurs): ...\n@app.status\ndef status(defalt): ...")

    message = message_of("script:app")

    assert message.startswith("3 mistakes:\n")
    assert "cpus=0" in message
    assert "did you mean 'default'?" in message


def test_an_app_without_algorithm_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path, "")

    message = message_of("script:app")

    assert "script.py, line 6" in message
    assert "has no algorithm" in message


def test_an_algorithm_without_functions_is_none(tmp_path: Path) -> None:
    write(tmp_path, "app.algorithm('bare')")

    assert list(import_app("script:app").build()) == ["bare"]


def test_a_misspelt_app_name_is_told_with_what_exists(tmp_path: Path) -> None:
    write(tmp_path, "limit = 3")

    message = message_of("script:ap")

    assert "did you mean 'app'?" in message
    assert "apps there: app" in message


def test_a_name_that_is_no_app_is_told_with_what_it_is(tmp_path: Path) -> None:
    write(tmp_path, "limit = 3")

    assert "'limit' is not an App, but of type int" in message_of("script:limit")


@pytest.mark.parametrize("target", ["scrip:app", "scrip", "scrip.py:app", "script/:app"])
def test_a_missing_script_is_told_with_those_that_exist(target: str, tmp_path: Path) -> None:
    write(tmp_path, "")

    message = message_of(target)

    assert "there is no" in message
    assert "did you mean 'script" in message or "there is no file script" in message
    assert "script.py" in message


@pytest.mark.parametrize(("target", "advice"), [("moods.ipynb", "export the notebook"), ("script.txt", "rename it")])
def test_a_file_that_is_no_script_is_told_so(target: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / target).write_text("{}", encoding="utf-8")

    assert message_of(target) == f"{target} is not a Python script, whose name ends with .py: {advice}"


@pytest.mark.parametrize("target", ["", ":app", "script:", "script:a-b", "script:app()"])
def test_a_target_that_is_none_is_told_how_to_write_one(target: str) -> None:
    assert "write module:app or file.py:app" in message_of(target)


def test_the_only_app_of_a_script_needs_no_name(tmp_path: Path) -> None:
    write(tmp_path, "@app.train\ndef train(): ...\nsame = app")

    assert import_app("script") is import_app("script.py") is import_app(str(tmp_path / "script.py:app"))


def test_a_script_with_several_apps_needs_a_name(tmp_path: Path) -> None:
    write(tmp_path, "second = App('b')")

    assert "script:<name>; there are: app, second" in message_of("script")


def test_a_script_without_app_is_told_how_to_make_one(tmp_path: Path) -> None:
    write(tmp_path, "x = 1", head="")

    assert 'app = App("name")' in message_of("script")


def test_a_file_in_a_package_keeps_its_relative_imports(tmp_path: Path) -> None:
    package = tmp_path / "shop" / "nlp"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "names.py").write_text("NAME = 'from a neighbour'")
    write(package, "from .names import NAME\n@app.train\ndef train(): ...")

    app = import_app(f"{package / 'script.py'}:app")

    assert sys.modules["shop.nlp.script"].NAME == "from a neighbour"
    assert target_of(app) == "shop.nlp.script:app"


def test_a_file_with_the_name_of_another_module_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "", "json.py")

    assert "rename the file" in message_of("json.py:app")


def test_a_script_may_be_mended_and_imported_again(tmp_path: Path) -> None:
    write(tmp_path, "import nothing_like_this")
    assert "nothing_like_this" in message_of("script:app")
    write(tmp_path, "@app.train\ndef train():\n    '''Now it is another length.'''")

    assert list(import_app("script:app").build()) == ["a"]


def test_the_target_finds_the_app_again(tmp_path: Path) -> None:
    write(tmp_path, "@app.train\ndef train(): ...", "first.py")
    write(tmp_path, "@app.load\ndef load(): ...", "second.py")
    (tmp_path / "both.py").write_text(
        "from mlpkit import App\nimport first, second\nmain = App('nlp').include(first.app)\n"
    )

    app = import_app("both.py")

    assert target_of(app) == "both:main"
    assert import_app(target_of(app)) is app


def test_an_app_made_elsewhere_is_found_where_it_is_a_global(tmp_path: Path) -> None:
    write(tmp_path, "def make():\n    return App('made')", "maker.py")
    (tmp_path / "holder.py").write_text("import maker\nmade = maker.make()")

    assert target_of(import_app("holder:made")) == "holder:made"


def test_an_app_that_no_module_holds_has_no_target() -> None:
    with pytest.raises(DeclarationError, match="must be a global of a module") as caught:
        target_of(App("lost"))

    assert "test_script.py, line" in str(caught.value)


FACTORY = """
from mlpkit import App

app = App("shop")


def add(name, answer):
    algorithm = app.algorithm(name)

    @algorithm.load
    def load():
        return answer

    @algorithm.predict
    def predict(model):
        return model


for name in ("toys", "books"):
    add(name, name.upper())
"""


def test_hooks_may_be_made_by_a_function_while_the_script_is_imported(tmp_path: Path) -> None:
    write(tmp_path, FACTORY)

    algorithms = import_app("script.py").build()

    assert list(algorithms) == ["toys", "books"]
    plan = algorithms["books"].plan("load")
    assert plan is not None
    assert plan.function() == "BOOKS"


def test_a_function_of_another_module_may_make_hooks_too(tmp_path: Path) -> None:
    (tmp_path / "makers.py").write_text(FACTORY.partition("for name")[0].replace("def add(", "def add(app, "))
    write(tmp_path, "import makers\nfrom mlpkit import App\napp = App('main')\nmakers.add(app, 'toys', 1)\n")

    assert list(import_app("script.py").build()) == ["toys"]


def test_hooks_that_are_made_after_the_import_are_refused(tmp_path: Path) -> None:
    write(tmp_path, FACTORY.partition("for name")[0])
    app = import_app("script.py")

    sys.modules["script"].add("late", 1)

    with pytest.raises(DeclarationError, match="load, which add defines after the module was imported: call add at"):
        app.build()


def test_a_script_may_run_its_app_without_asking_for_its_name(tmp_path: Path) -> None:
    line = write(tmp_path, LOAD + "app.run(port=70000)  # <-\nafterwards = True\n")
    logged: list[LogLine] = []

    with logger.also_to(logged.append):
        assert import_app("script.py").build()

    assert sys.modules["script"].afterwards
    assert [found.message for found in logged if found.level == "WARNING"] == [
        f"script.py, line {line}: app.run() starts nothing while the script is imported; "
        'put it below if __name__ == "__main__":'
    ]


def test_a_script_with_a_dot_in_its_name_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model.v2.py").write_text("from mlpkit import App\napp = App('v2')\n")

    for target in ("model.v2.py", "model.v2.py:app", "model.v2", "model.v2:app"):
        with pytest.raises(DeclarationError, match=r"model\.v2\.py cannot be imported.* to model_v2\.py"):
            import_app(target)


SENTI = """
import pickle
import sys
from mlpkit import App


class Model:
    pass


app = App("senti")


@app.load
def load(): ...


@app.predict
def predict(model): ...


if __name__ == "__main__":
    pickle.dump(Model(), open(sys.argv[1], "wb"))
"""
WRITE = """
import pickle, sys
from mlpkit.script import import_app, target_of
app = import_app(sys.argv[2])
pickle.dump(sys.modules[app.origin.module].Model(), open(sys.argv[1], "wb"))
"""
READ = """
import pickle, sys
from mlpkit.script import import_app
app = import_app(sys.argv[1])
Model = sys.modules[app.origin.module].Model
for file in sys.argv[2:]:
    for loads in (pickle.loads, pickle._loads):
        assert type(loads(open(file, "rb").read())) is Model, file
"""


@pytest.mark.parametrize("folder", ["algos", "deep/algos", ""])
@pytest.mark.parametrize("package", [True, False], ids=["package", "no package"])
def test_a_pickle_is_found_under_every_name_of_the_script(tmp_path: Path, folder: str, package: bool) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / folder).mkdir(parents=True)
    elsewhere.mkdir()
    (here / folder / "senti.py").write_text(SENTI)
    if package and folder:
        (here / folder / "__init__.py").touch()
    # Programs in a folder of their own: the working directory is not on sys.path, as for a console script.
    for name, code in (("write.py", WRITE), ("read.py", READ)):
        (elsewhere / name).write_text(code)
    file, module = str(Path(folder) / "senti.py"), f"{folder}/senti:app".strip("/").replace("/", ".")

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=here, check=True, timeout=LONG)

    python(file, "as_main")
    python("../elsewhere/write.py", "as_file", file)
    python("../elsewhere/write.py", "as_module", module)

    python("../elsewhere/read.py", file, "as_main", "as_file", "as_module")
    python("../elsewhere/read.py", module, "as_main", "as_file", "as_module")


def test_another_module_of_the_scripts_name_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "json.py").write_text(SENTI)
    code = """
from mlpkit.script import import_app
import_app("algos.json:app")
import json, algos.json
assert json is not algos.json
assert json.loads("1") == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=LONG)
