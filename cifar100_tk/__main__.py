"""The command `cifar100-tk`, also `python -m cifar100_tk`: every other command under one name."""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from pathlib import Path

from cifar100_tk import __version__
from cifar100_tk.cli.recipes import path_of, recipes
from cifar100_tk.errors import ConfigError, exit_on_error

COMMANDS = {
    "train": "train a recipe: its name, or the path of a recipe file of your own, then its options",
    "recipes": "list the recipes that come with the package, and where their files are",
    "eval": "measure trained models",
    "predict": "classify image files",
    "report": "write one HTML page about one run or several",
    "runs": "list, compare and verify runs",
    "demo": "try a model in a browser",
    "hub": "publish a run on the Hugging Face Hub, or check what is there",
    "export": "export a model to ONNX or torch.export",
    "data": "make local copies of the data, and check them",
    "import_weights": "make a model folder from weights trained elsewhere",
    "doctor": "show what this machine can do",
    "completion": "print a script that completes these commands in your shell: bash or zsh",
}
_COMPLETION = """\
# eval "$(cifar100-tk completion {shell})", for example in ~/.{shell}rc
declare -A _cifar100_tk_options
_cifar100_tk() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} first=2
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [[ $command = train && $COMP_CWORD -eq 2 ]]; then
        COMPREPLY=($(compgen -W "{recipes}" -- "$word") $(compgen -f -- "$word"))
    elif [[ $word = -* ]]; then
        local key=$command
        [[ $command = train ]] && key="train ${{COMP_WORDS[2]}}"
        : "${{_cifar100_tk_options[$key]:=$(cifar100-tk $key --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9.-]*' | sort -u)}}"
        COMPREPLY=($(compgen -W "${{_cifar100_tk_options[$key]}}" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _cifar100_tk cifar100-tk
"""


def main() -> None:
    """Run one command, and end the process with the exit code that fits."""
    program, arguments = "cifar100-tk", sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] == "--version":
        print(f"cifar100_tk {__version__}")
        return
    command, rest = arguments[0].replace("-", "_"), arguments[1:]
    with exit_on_error(program):
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {arguments[0]}; give one of {', '.join(COMMANDS)}.")
        if command == "recipes":
            return list_recipes(rest)
        if command == "completion":
            return print_completion(rest)
        recipe = recipe_file(rest) if command == "train" else None
    if command != "train":
        sys.argv = [program, *rest]
        module = importlib.import_module(f"cifar100_tk.{command}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{module.__name__}.__main__")
        module.main()
    elif recipe is not None:
        sys.argv = [str(recipe), *rest[1:]]
        as_typed = {"__command__": f"{program} train {rest[0]}"}
        runpy.run_path(str(recipe), init_globals=as_typed, run_name="__main__")


def usage() -> str:
    """Return the help text."""
    rows = "\n".join(f"  {name.replace('_', '-'):14} {text}" for name, text in COMMANDS.items())
    return (
        f"usage: cifar100-tk COMMAND ...\n\nTrain, measure and share CIFAR-100 classifiers.\n\n{rows}\n\n"
        "`cifar100-tk COMMAND --help` lists the options of a command, `cifar100-tk train RECIPE --help` those of a recipe.\n"
        "On several GPUs: accelerate launch --multi_gpu -m cifar100_tk train RECIPE"
    )


def recipe_file(arguments: list[str]) -> Path | None:
    """Return the recipe file that the arguments of `train` name first, or None once its help is printed.

    Raises ConfigError if there is no such recipe.
    """
    given, found = "".join(arguments[:1]), recipes()
    if given in ("-h", "--help"):
        print(f"usage: cifar100-tk train RECIPE [OPTIONS]\n\nRECIPE: {', '.join(found)}, or the path of a recipe file.")
        print("`cifar100-tk train RECIPE --help` lists the options.")
        return None
    path = path_of(given, found)
    if not given or given.startswith("-") or not path.is_file():
        wrong = f"there is no recipe {given}" if given and not given.startswith("-") else "train needs a recipe first"
        raise ConfigError(f"{wrong}; give {', '.join(found)}, or the path of a recipe file.")
    return path


def list_recipes(arguments: list[str]) -> None:
    """Print each recipe's name and title, and the folder that holds them. Raises ConfigError for an argument."""
    if arguments and arguments != ["--help"]:
        raise ConfigError(f"recipes takes no arguments, but {' '.join(arguments)} was given; leave them out.")
    found = recipes()
    for name, path in found.items():
        title = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"{name:16} {title}")
    for folder in {path.parent for path in found.values()}:
        print(f"\nin {folder}; copy one to make a recipe of your own, and train it by its path.")


def print_completion(arguments: list[str]) -> None:
    """Print the completion script of a shell. Raises ConfigError for a shell that has none."""
    shell = " ".join(arguments)
    if shell not in ("bash", "zsh"):
        raise ConfigError(f"there is no completion for {shell or 'no shell'}; give bash or zsh.")
    script = _COMPLETION.format(shell=shell, commands=" ".join(COMMANDS), recipes=" ".join(recipes()))
    print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script, end="")


if __name__ == "__main__":
    main()
