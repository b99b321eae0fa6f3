"""What every test session shares: notebooks may be slow to print, and a browser may be required."""


def pytest_addoption(parser):
    group = parser.getgroup("gradient-to-cluster")
    group.addoption(
        "--require-browser", action="store_true", help="fail, do not skip, where there is no Chromium"
    )
    group.addoption(
        "--fresh-environment", action="store_true", help="install binder/ into a new environment (minutes)"
    )


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):  # a notebook cell of nbval, which waits 5 s for output by default
        item.output_timeout = 60
