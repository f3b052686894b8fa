"""The Azure CLI's own parser judges calls of `az`: `check FILE...` takes pages in Markdown (blocks of a shell), and files with a call a
line. Nothing is run and nothing is asked. Prints how many calls there were in each file; what the parser does not take is an error.
"""

import logging
import os
import re
import shlex
import sys
import tempfile

SHELLS = {"sh", "bash", "console", "azurecli"}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def scripts(file):
    with open(file, encoding="utf-8") as source:
        text = source.read()
    if not file.endswith(".md"):
        return [text]
    blocks = [(kind, body) for kind, body in BLOCK.findall(text) if kind in SHELLS]
    return [shown(body) if kind == "console" else body for kind, body in blocks]


def shown(body):
    """Without what is shown below a command: what goes on ends with a backslash."""
    lines, goes_on = [], False
    for line in body.splitlines():
        if goes_on or line.startswith("$ "):
            lines.append(line if goes_on else line[2:])
            goes_on = line.endswith("\\")
    return "\n".join(lines)


def calls(script):
    # None of the calls has a `#` behind a space that begins no comment.
    script = re.sub(r"(^|\s)#.*$", "", script.replace("\\\n", " "), flags=re.M)
    script, inner = without_substitutions(script)
    for it in inner:
        yield from calls(it)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";|&()<>\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words, skip = [], False
    for token in [*lexer, "\n"]:
        if token and set(token) <= set(";|&()\n"):
            yield from call(words)
            words, skip = [], False
        elif token and set(token) <= set("<>&"):
            # A descriptor's number stands before it, the file behind.
            if words and words[-1].isdigit():
                words.pop()
            skip = True
        elif skip:
            skip = False
        else:
            words.append(token)


def call(words):
    while words and (re.match(r"[A-Za-z_]\w*=", words[0]) or words[0] in ("if", "then", "do", "!", "while", "until")):
        words = words[1:]
    if words and words[0] == "az":
        yield words[1:]


def without_substitutions(script):
    inner = []
    while (start := script.find("$(")) >= 0:
        depth, end = 1, start + 2
        while depth:
            depth += {"(": 1, ")": -1}.get(script[end], 0)
            end += 1
        inner.append(script[start + 2 : end - 1])
        script = f"{script[:start]}SUBSTITUTED{script[end:]}"
    return script, inner


class Judge:
    def __init__(self, folder):
        os.environ |= {"AZURE_CONFIG_DIR": folder, "AZURE_CORE_COLLECT_TELEMETRY": "no", "AZURE_CORE_ONLY_SHOW_ERRORS": "yes"}
        # Modules of other services are not installed, and are told of.
        logging.disable(logging.CRITICAL)
        from azure.cli.core import get_default_cli

        self.cli = get_default_cli()

    def parse(self, words):
        cli = self.cli
        cli.invocation = cli.invocation_cls(
            cli_ctx=cli, parser_cls=cli.parser_cls, commands_loader_cls=cli.commands_loader_cls, help_cls=cli.help_cls
        )
        loader = cli.invocation.commands_loader
        loader.load_command_table(words)
        command = cli.invocation._rudimentary_get_command(words)
        cli.invocation.data["command_string"] = command
        loader.command_name = command
        loader.load_arguments(command)
        cli.invocation.parser.cli_ctx = cli
        cli.invocation.parser.load_command_table(loader)
        cli.invocation.parser.parse_args(words)


def main():
    found = [(file, words) for file in sys.argv[2:] for script in scripts(file) for words in calls(script)]
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(folder)
        for file, words in found:
            try:
                judge.parse(words)
            except SystemExit as end:
                if end.code:
                    refused.append(f"{file}: az {shlex.join(words)}")
            except Exception as error:
                refused.append(f"{file}: az {shlex.join(words)}: {error!r}")
    for file in sys.argv[2:]:
        print(f"{sum(it == file for it, _ in found)} {file}")
    if refused:
        sys.exit("the Azure CLI does not take\n" + "\n".join(refused))


if __name__ == "__main__":
    assert sys.argv[1] == "check"
    main()
