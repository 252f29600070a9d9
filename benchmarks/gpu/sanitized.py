"""Launches every kernel once, and does nothing else: the program that compute-sanitizer watches."""

import sys

from harness import synchronize

from gpu.launches import launches


def main(device: str, families: list[str]) -> None:
    for launch in launches():
        if not families or launch.family in families:
            print("launch:", launch.name, flush=True)
            launch.run(device, False)
            synchronize(device)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
