"""Commands in processes of their own, as users run them: without the virtual devices that tests have."""

import os


def environment(**variables: str) -> dict[str, str]:
    """The variables of such a process.

    `NPROC` goes with the virtual devices: with 32 threads on two cores, EM takes several times as long.
    """
    tests_alone = ("XLA_FLAGS", "NPROC")
    return {name: value for name, value in os.environ.items() if name not in tests_alone} | variables
