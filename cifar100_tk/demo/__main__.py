"""`python -m cifar100_tk.demo MODEL`: the command line of the demo page."""

import tyro

from cifar100_tk.cli.arguments import parse
from cifar100_tk.demo.server import DemoOptions, serve
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import exit_on_error


def main() -> None:
    """Run the command and exit with its exit code."""
    program = "python -m cifar100_tk.demo"
    with exit_on_error(program):
        refuse_several(program)
        serve(parse(lambda: tyro.cli(DemoOptions, prog=program)))


if __name__ == "__main__":
    main()
