"""`--completion bash` and `--completion zsh`: a script by which the shell completes the flags.

    source <(python train.py --completion bash)

A shell asks for completion by the name of a command alone, which is `python` here. So the scripts look
whether train.py is typed after it, and leave other commands as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

from common.values import choices, plain_type
from settings.config import HINTS, ConfigError
from settings.groups import groups

COMPLETION = "--completion"

# bash gives `--name=word` as three words, of which the second is `=`
_BASH = """\
_dppo_train() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flag= i
    COMPREPLY=()
    [[ "${{COMP_WORDS[*]:0:COMP_CWORD}} " == *"train.py "* ]] || return
    [[ $word == = ]] && word=
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W {flags} -- "$word"))
        return
    fi
    for ((i = COMP_CWORD - 1; i > 0; i--)); do
        [[ ${{COMP_WORDS[i]}} == --* ]] && flag=${{COMP_WORDS[i]}} && break
    done
    case $flag in
{cases}
    esac
}}
complete -o bashdefault -o default -F _dppo_train train.py python python3
"""
_BASH_CASE = '        --{name}) COMPREPLY=($(compgen -W {words} -- "$word")) ;;'

_ZSH = """\
_dppo_train() {{
    local -a before=("${{(@)words[1,CURRENT-1]}}") flags=({flags})
    local flag=${{before[(R)--*]}}
    if [[ "$before " != *"train.py "* ]]; then
        if (( $+functions[_python] )); then _python; else _files; fi
        return
    fi
    if compset -P '--*='; then
        flag=${{IPREFIX%=}}
    elif [[ $PREFIX == -* ]]; then
        _describe -o flag flags
        return
    fi
    case $flag in
{cases}
        *) _files ;;
    esac
}}
compdef _dppo_train train.py python python3
"""
_ZSH_CASE = "        --{name}) compadd -- {words} ;;"


def print_completion(shell: str, words: Mapping[str, Sequence[str]]) -> NoReturn:
    """Print a shell's script, and exit.

    Args:
        words: what to offer for settings that take any text.

    Raises:
        ConfigError: for another shell.
    """
    offered = {name: choices(hint) for name, hint in HINTS.items() if choices(hint)} | dict(words)
    helps = _helps()
    if shell == "bash":
        flags = shlex.quote(" ".join(helps))
        cases = [
            _BASH_CASE.format(name=name, words=shlex.quote(" ".join(found)))
            for name, found in offered.items()
        ]
        print(_BASH.format(flags=flags, cases="\n".join(cases)), end="")
    elif shell == "zsh":
        flags = " ".join(
            shlex.quote(f"{flag}:{text}".replace("\n", " ")) for flag, text in helps.items()
        )
        cases = [
            _ZSH_CASE.format(name=name, words=shlex.join(found)) for name, found in offered.items()
        ]
        print(_ZSH.format(flags=flags, cases="\n".join(cases)), end="")
    else:
        raise ConfigError(f"completion is {shell!r}, but must be bash or zsh")
    raise SystemExit(0)


def _helps() -> dict[str, str]:
    """Every flag with its help."""
    helps = {"--help": "Explain every setting.", "--dry_run": "Print the settings, start nothing."}
    for group in groups():
        for name, text in group.settings.items():
            helps[f"--{name}"] = text
            if plain_type(HINTS[name]) is bool:
                helps[f"--no_{name}"] = f"The opposite of --{name}."
    return helps
