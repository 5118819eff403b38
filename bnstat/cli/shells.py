"""The shells that complete bnstat's command line: click's own completion, where it falls short.

In bash, a word that is offered has to be quoted as the line needs it, and `--layer=NAME` is one
word; in fish, a comma may be part of a name. zsh may not have loaded its completion system. And
whatever goes wrong behind a Tab, nothing is written over the line that somebody is typing.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

_CURSOR: Final = "\0"


class _Quiet(ShellComplete):
    def complete(self) -> str:
        try:
            return super().complete()
        except Exception:
            return ""


class _WholeWords(_Quiet):
    """Where a completion replaces all of the word, also the option in `--option=value`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        items = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):
            for item in items:
                item.value = f"{option}={item.value}"
        return items


class Bash(_Quiet, BashComplete):
    """bash, from 4.4 on."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDS="${COMP_WORDS[*]}" \
COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one at it.

        They are split as a shell would. COMP_WORDS, which is split at `=` and `:` as well, is for
        lack of COMP_LINE, the line up to the cursor.
        """
        line = os.environ.get("COMP_LINE")
        if line is None:
            return super().get_completion_args()
        words = split_arg_string(line + _CURSOR)
        return words[1:-1], words[-1].removesuffix(_CURSOR)

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The completion, quoted like the word that it is to replace."""
        if item.type != "plain":
            return super().format_completion(item)
        words = os.environ["COMP_WORDS"].split("\n")
        at_cursor = words[int(os.environ["COMP_CWORD"]) :][:1]
        return f"plain,{_quoted(item.value, ''.join(at_cursor)[:1])}"


class Fish(_WholeWords, FishComplete):
    """fish."""

    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


class Zsh(_WholeWords, ZshComplete):
    """zsh."""

    source_template = ZshComplete.source_template.replace(
        "\n", "\n(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\n", 1
    )


SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}
"""The shells, by their names."""


def register() -> None:
    """Make click use these classes."""
    for shell in SHELLS.values():
        add_completion_class(shell)


def _quoted(text: str, quote: str) -> str:
    """`text` for a bash command line, behind a quote where one is open."""
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        return re.sub(r'([\\$`"])', r"\\\1", text)
    return re.sub(r"([^\w./,@%+=:-])", r"\\\1", text)
