"""`bnstat completion`: print the script that makes Tab complete bnstat's command line."""

from __future__ import annotations

import click

_EPILOG = """\b
Examples:
  source <(bnstat completion bash)     # ~/.bashrc
  source <(bnstat completion zsh)      # ~/.zshrc, after compinit
  bnstat completion fish | source      # ~/.config/fish/config.fish
"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that makes Tab complete the command line in SHELL.

    Tab then completes commands, options, paths, rules and topics, and the layers, checkpoints and
    steps of the model whose path was typed before. Add the line for your shell, from the examples
    below, to the file that the shell reads when it starts.
    """
    from click.shell_completion import get_completion_class

    from bnstat.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(main, {}, "bnstat", "_BNSTAT_COMPLETE").source(), nl=False)
