"""Which test files take longer than a family's share of the default suite.

python -m pytest -n 2 --junitxml=durations.xml
python tests/durations.py durations.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

SHARE = 10.0
"""Seconds of one core for the tests of one family, those of test_protocol.py included."""


def seconds(path: str) -> Counter:
    """Seconds by test file, and in test_protocol.py by family."""
    found: Counter = Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("classname", "")
        if name.endswith("test_protocol"):
            _, _, parameter = case.get("name", "").partition("[")
            package, _, family = parameter.rstrip("]").removeprefix("jaxgen.").partition(".")
            name = f"tests.{package}.test_{family}" if family else name
        found[name] += float(case.get("time", 0.0))
    return found


def main(path: str, share: float = SHARE) -> int:
    """Print files by their time, and how many exceed their share."""
    over = 0
    for name, time in seconds(path).most_common():
        over += time > share
        print(f"{time:7.1f} s  {name}{'  over its share' if time > share else ''}")
    return over


if __name__ == "__main__":
    over = main(sys.argv[1], *map(float, sys.argv[2:]))
    sys.exit(f"{over} files take more than their share" if over else 0)
