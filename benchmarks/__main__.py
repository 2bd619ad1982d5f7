"""All measurements in one go: python -m benchmarks [--quick]. Each module also runs alone.

Run it on a machine that does nothing else: 19 minutes on two cores, --quick two and a half.
"""

import argparse
import subprocess
import sys

# module -> its options, and those of --quick
PARTS = {"networks": ("--repeats 2 --memory",
                      "--repeats 1 --stages maps labels"),
         "drs": ("--amp off --repeats 2 --networks vgg16 resnet18 regnet_y_400mf",
                 "--amp off --repeats 1 --no-memory"),
         "data_path": ("--images 24", "--images 6 --runs 1"),
         "stages": ("", "--images 100"),
         "growth": ("--images 100 1000 10000", "--images 20 100"),
         "crf": ("--count 1 --repeat 2", "--quick")}


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    for name, options in PARTS.items():
        print(f"\n## benchmarks.{name} {options[quick]}\n", flush=True)
        # In a process of its own: peak memory includes that of whoever started a process.
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options[quick].split()],
                       check=True)


if __name__ == "__main__":
    main()
