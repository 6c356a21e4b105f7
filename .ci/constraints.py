"""Write constraints from pip's installation report on stdin: each package and its version, but not qsit itself."""

import json
import sys


def main() -> None:
    """Leave out local versions: `2.13.0+cpu` is `2.13.0` elsewhere."""
    print("# Every version that `make` installs. Written by `make constraints`.")
    packages = [package["metadata"] for package in json.load(sys.stdin)["install"]]
    pins = {package["name"]: package["version"].partition("+")[0] for package in packages}
    for name in sorted(pins.keys() - {"qsit"}, key=str.lower):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
