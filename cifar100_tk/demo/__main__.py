"""`python -m cifar100_tk.demo MODEL`: a page on which people drop a picture and see what a model makes of it."""

import tyro

from cifar100_tk.arguments import parse
from cifar100_tk.demo.server import DemoOptions, serve
from cifar100_tk.errors import exit_with_sentence
from cifar100_tk.single_process import refuse_several


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.demo"
    with exit_with_sentence(program):
        refuse_several(program)
        serve(parse(lambda: tyro.cli(DemoOptions, prog=program)))


if __name__ == "__main__":
    main()
