"""From a target such as `sentiment.py:app` to the App, and back.

If a script cannot be imported, there is always one message, with the author's own file and line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from mlpkit import start_folder, working_directory
from mlpkit.algorithm import Algorithm
from mlpkit.app import App, importing
from mlpkit.errors import ArgumentError, DeclarationError, did_you_mean
from mlpkit.injection import place_of_error


def import_app(target: str) -> App:
    """The App that a target names; imports its script.

    Args:
        target: `module:name` (the working directory is searched too), `path/to/file.py:name`, or either without a name
            if the module has exactly one App.

    Raises:
        DeclarationError: the module or App does not exist, or the script cannot be imported; says where and why.
    """
    # The script may change the working directory, so every path is made absolute before it is imported.
    here = Path(working_directory())
    sys.path[:] = absolute_search_path(here)
    folder = Path(target).expanduser()
    if target and not target.isidentifier() and folder.is_dir():
        raise DeclarationError(f"{target} is a folder: name the script in it{_scripts_in(folder)}")
    script, colon, name = target.rpartition(":") if ":" in target else (target, "", "")
    if not script or (colon and not name.isidentifier()):
        raise DeclarationError(f"{target!r} names no app: write module:app or file.py:app")
    module = _import_file(Path(script).expanduser()) if _is_path(script) else _import_module(script, here)
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name:
        app = _named(module, name, apps)
    elif not apps:
        raise DeclarationError(f'{script} has no app: make one with app = App("name")')
    elif len({id(app) for app in apps.values()}) > 1:
        raise DeclarationError(f"{script} has several apps, write {script}:<name>; there are: {', '.join(apps)}")
    else:
        app = next(iter(apps.values()))
    know_by_other_names(module)
    _stand_in_for_main(module)
    return app


def know_by_other_names(script: ModuleType) -> None:
    """Lets pickles find the script's classes under every name of its module.

    A class of `algos/senti.py` is pickled as one of `senti` under `run algos/senti.py`, and as one of `algos.senti`
    under `run algos.senti:app`. A name that leads to another file is left alone.
    """
    if not script.__file__:
        return
    file = Path(script.__file__).resolve()
    start = Path(start_folder).resolve()
    names = {_name_and_folder(file)[0]}
    if file.is_relative_to(start):
        names.add(".".join(file.relative_to(start).with_suffix("").parts))
    for name in names:
        if all(part.isidentifier() for part in name.split(".")) and _leads_to(name, file):
            sys.modules[name] = script
            # Unpicklers that are written in Python import the packages around a module too.
            for depth, folder in enumerate(reversed(file.parents[: name.count(".")]), 1):
                _make_package(".".join(name.split(".")[:depth]), folder)


def _leads_to(name: str, file: Path) -> bool:
    """Whether this module name is free, or belongs to the file."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
        return found is not None and Path(found).resolve() == file
    # Looking for a module in a package would run the package.
    spec = None if "." in name else importlib.util.find_spec(name)
    return spec is None or spec.origin == str(file)


def _make_package(name: str, folder: Path) -> None:
    if name not in sys.modules and ("." in name or importlib.util.find_spec(name) is None):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder)]


def _stand_in_for_main(script: ModuleType) -> None:
    """Lets pickles that `python senti.py` made find their classes."""

    def find(name: str) -> object:
        # Such a pickle names `__main__`, which is another program in a worker.
        if name.startswith("__") or name not in vars(script):
            raise AttributeError(f"module '__main__' has no attribute {name!r}")
        return vars(script)[name]

    if sys.modules["__main__"] is not script:
        vars(sys.modules["__main__"])["__getattr__"] = find


def target_of(app: App) -> str:
    """The target with which another process imports the app again.

    It is `module:name` or `/path/to/file.py:name`.

    Raises:
        DeclarationError: no module has the app as a global.
    """
    others = [name for name in list(sys.modules) if name.partition(".")[0] != "mlpkit"]
    for module_name in (app.origin.module, *others):
        module = sys.modules.get(module_name)
        name = next((key for key, value in list(vars(module).items()) if value is app), None) if module else None
        if module is None or name is None:
            continue
        if module.__name__ != "__main__":
            return f"{module.__name__}:{name}"
        if module.__spec__ is not None:
            return f"{module.__spec__.name}:{name}"
        if module.__file__:
            return f"{Path(module.__file__).resolve()}:{name}"
        raise DeclarationError(
            f"App({app.name!r}) is made in an interactive session: worker processes can only import it from a file"
        )
    raise DeclarationError(
        f"{app.place}: App({app.name!r}) must be a global of a module, so that worker processes can import it"
    )


def absolute_search_path(folder: Path = Path(start_folder)) -> list[str]:
    """`sys.path` with absolute entries, which no `os.chdir` changes."""
    return [os.path.abspath(os.path.join(folder, entry)) for entry in sys.path if isinstance(entry, str)]


def choose_algorithm(app: App, name: str | None) -> Algorithm:
    """The algorithm of that name, or the only one.

    Raises:
        DeclarationError: the script has mistakes.
        ArgumentError: no algorithm has that name, or there are several and `name` is None.
    """
    algorithms = app.build()
    if name is None and len(algorithms) == 1:
        return next(iter(algorithms.values()))
    if name is not None and name in algorithms:
        return algorithms[name]
    several = "the app has several algorithms: name one with --algorithm"
    problem = f"the app has no algorithm {name!r}" if name else several
    raise ArgumentError(f"{problem}{did_you_mean(name or '', algorithms)} ({', '.join(algorithms)})")


def _is_path(script: str) -> bool:
    return script.endswith(".py") or "/" in script


def _named(module: ModuleType, name: str, apps: dict[str, App]) -> App:
    if name in apps:
        return apps[name]
    script = module.__file__ or module.__name__
    exists = f"\n  apps there: {', '.join(apps) or 'none'}"
    if hasattr(module, name):
        found = type(getattr(module, name)).__name__
        raise DeclarationError(f"{script}: {name!r} is not an App, but of type {found}{exists}")
    raise DeclarationError(f"{script} has no {name!r}{did_you_mean(name, apps or vars(module))}{exists}")


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        scripts = (file.with_suffix(".py"), *sorted(file.parent.glob("*.py")))
        near = [str(script) for script in scripts if script.is_file()]
        raise DeclarationError(f"there is no file {file}{did_you_mean(str(file), near)}{_scripts_in(file.parent)}")
    file = file.resolve()
    if "." in file.stem:
        raise DeclarationError(_dotted(file))
    name, folder = _name_and_folder(file)
    module = _import_module(name, folder)
    if not module.__file__ or Path(module.__file__).resolve() != file:
        raise DeclarationError(
            f"{file} cannot be imported as {name!r}: that is the name of {module.__file__ or 'a part of Python'}; "
            "rename the file"
        )
    return module


def _name_and_folder(file: Path) -> tuple[str, Path]:
    """The module's name of a script, and its folder for `sys.path`."""
    folder = file.parent
    name = file.stem
    while (folder / "__init__.py").is_file():
        name = f"{folder.name}.{name}"
        folder = folder.parent
    return name, folder


def _dotted(file: Path) -> str:
    return (
        f"{file} cannot be imported, because Python reads a dot in a module's name as a package: "
        f"rename it, for example to {file.stem.replace('.', '_')}.py"
    )


def _import_module(name: str, folder: Path) -> ModuleType:
    """The module, with `folder` searched first.

    Raises:
        DeclarationError: it does not exist, or importing it failed; names the author's own file and line.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    token = importing.set(True)
    try:
        return importlib.import_module(name)
    except DeclarationError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            if "." in name and (folder / f"{name}.py").is_file():
                raise DeclarationError(_dotted(folder / f"{name}.py")) from None
            if (folder / name).is_file():
                notebook = "export the notebook" if name.endswith(".ipynb") else "rename it"
                raise DeclarationError(f"{name} is not a Python script, whose name ends with .py: {notebook}") from None
            scripts = [script.stem for script in folder.glob("*.py")]
            hint = did_you_mean(name, scripts)
            raise DeclarationError(f"there is no module {name!r}{hint}{_scripts_in(folder)}") from None
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error
    finally:
        importing.reset(token)


def _scripts_in(folder: Path) -> str:
    scripts = sorted(script.name for script in folder.glob("*.py"))[:20]
    return f"\n  scripts in {folder.absolute()}: {', '.join(scripts) or 'none'}"


def _failed(name: str, error: BaseException) -> DeclarationError:
    place = place_of_error(error) or f"module {name}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return DeclarationError(f"{place}: the script cannot be imported: {type(error).__name__}: {text}{_hint(error)}")


def _hint(error: BaseException) -> str:
    """A suggestion for the author, if Python gives none."""
    if isinstance(error, SystemExit):
        return '; put what reads a command line or ends the program below if __name__ == "__main__":'
    if isinstance(error, ModuleNotFoundError):
        return f"; is it installed for {sys.executable}?"
    if isinstance(error, ImportError):
        wanted = re.match(r"cannot import name '(\w+)'", str(error))
        module = sys.modules.get(error.name or "")
        return did_you_mean(wanted[1], dir(module)) if wanted and module else ""
    if isinstance(error, NameError) and error.__traceback__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        return did_you_mean(error.name or "", [*frame.f_locals, *frame.f_globals])
    return _keyword_hint(error)


def _keyword_hint(error: BaseException) -> str:
    """`App(knd=...)` is Python's own TypeError: this adds the intended name."""
    match = re.search(r"(?:App|Algorithm)\.\w+\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None or not isinstance(error, TypeError):
        return ""
    known = ("name", "kind", "examples")
    hint = "" if "Did you mean" in str(error) else did_you_mean(match[1], known)
    return f"{hint}\n  arguments: {', '.join(known)}"
