"""`mlpkit version`."""

from __future__ import annotations

import click


@click.command()
def version() -> None:
    """Print the versions of mlpkit, Python and the packages below it.

    \b
    Example:
      mlpkit version
    """
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from mlpkit import __version__

    print(f"mlpkit {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("starlette", "uvicorn", "anyio", "minio", "msgspec", "loguru"):
        try:
            print(f"  {package} {installed(package)}")
        except PackageNotFoundError:
            print(f"  {package} is not installed")
