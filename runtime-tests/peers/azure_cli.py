"""The Azure CLI's own parser judges calls of `az`, without any network: `check FILE…` reads pages (*.md: their blocks of commands), comments
of *.yml ("# $ az …"), and scripts. Prints how many calls each has; what az does not take is told, and makes the exit code 1.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

# Stands for whatever the shell would put there.
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def main():
    command, *files = sys.argv[1:]
    if command != "check":
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        configure(folder)
        wrong = 0
        for file in files:
            calls = list(calls_of(file))
            for line, words in calls:
                complaint = refusal(words)
                if complaint:
                    wrong += 1
                    print(f"{file}:{line}: az {shlex.join(words)}\n  {complaint}", file=sys.stderr)
            print(f"{len(calls)} calls of az in {file}")
    sys.exit(1 if wrong else 0)


# What is read.


def calls_of(file):
    """Every call of az: its line, and its words."""
    text = Path(file).read_text(encoding="utf-8")
    if file.endswith(".md"):
        pieces = blocks_of(text)
    elif file.endswith(".yml"):
        pieces = commented(text)
    else:
        pieces = [(1, text)]
    for first, piece in pieces:
        yield from calls_in(piece, first)


def blocks_of(page):
    """The blocks of commands of a page. Where some begin with "$ ", other lines are answers, or go on with a command."""
    for block in re.finditer(r"^```(console|bash|sh|shell|azurecli)\n(.*?)^```", page, re.M | re.S):
        first = page.count("\n", 0, block.start(2)) + 1
        if block[1] == "console":
            yield from prompted(block[2].splitlines(), first)
        else:
            yield first, block[2]


def commented(text):
    lines = [re.sub(r"^\s*#\s?\s*", "", line) if re.match(r"\s*#", line) else "" for line in text.splitlines()]
    yield from prompted(lines, 1)


def prompted(lines, first):
    """Commands behind "$ ", with the lines on which they go on."""
    number = 0
    while number < len(lines):
        start = number
        number += 1
        if not lines[start].startswith("$ "):
            continue
        command = lines[start][2:]
        while number < len(lines) and not lines[number].startswith("$ ") and (command.endswith("\\") or has_error(command)):
            command += "\n" + lines[number]
            number += 1
        yield first + start, command


def has_error(command):
    return parse(command).root_node.has_error


def parse(command):
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language())).parse(command.encode())


def calls_in(script, first):
    """Calls of az in a piece of Bash, wherever they stand: in substitutions, behind pipes, in loops, as words of a function of scripts."""
    root = parse(script).root_node
    if root.has_error and re.search(r"\baz\b", script):
        raise SystemExit(f"line {first}: this is not understood as Bash: {script}")
    todo = [root]
    while todo:
        node = todo.pop()
        todo.extend(reversed(node.named_children))
        if node.type != "command" or node.child_by_field_name("name") is None:
            continue
        name = node.child_by_field_name("name").text.decode()
        if name == "az":
            words = [value(word) for word in node.children_by_field_name("argument")]
            yield first + node.start_point[0], words


def value(node):
    """A word as the shell would hand it over, with something in place of what only the shell knows."""
    text = node.text.decode()
    if node.type in ("word", "number"):
        return "".join(shlex.split(text)) if "\\" in text else text
    if node.type == "raw_string":
        return text[1:-1]
    if node.type == "ansi_c_string":
        return text[2:-1].encode().decode("unicode_escape")
    if node.type == "string":
        inner, at = "", node.start_byte + 1
        for child in node.named_children:
            if child.type in ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion"):
                inner += between(node, at, child.start_byte) + UNKNOWN
                at = child.end_byte
        inner += between(node, at, node.end_byte - 1)
        return re.sub(r"\\([\"$`\\])", r"\1", inner.replace("\\\n", ""))
    if node.type == "concatenation":
        return "".join(value(child) for child in node.children)
    if node.type in ("simple_expansion", "expansion", "command_substitution", "process_substitution"):
        return UNKNOWN
    return text


def between(node, start, end):
    return node.text[start - node.start_byte : end - node.start_byte].decode()


# What az says.


def refusal(words):
    """Why az does not take these words; none if it does."""
    from azure.cli.core import get_default_cli
    from azure.cli.core.commands import AzCliCommandInvoker

    taken = []

    def taking(_, jobs, __):
        taken.append(jobs)
        return [], []

    class Judge(AzCliCommandInvoker):
        _run_jobs_serially = taking
        _run_jobs_concurrently = taking

        # These look things up at Azure.
        def _validate_arg_level(self, ns, **_):
            pass

        def _validate_cmd_level(self, ns, cmd_validator):
            pass

        def resolve_confirmation(self, cmd, parsed_args):
            pass

    said = io.StringIO()
    cli = get_default_cli()
    cli.invocation_cls = Judge
    failures = []

    def fail(failure):
        failures.append(failure)
        return 1

    cli.exception_handler = fail
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            # What is read from a file is not there.
            cli.invoke([re.sub(r"^@(.)", r"\1", word) for word in words], out_file=said)
    except SystemExit:
        pass
    for failure in failures:
        if isinstance(failure, ImportError):
            raise SystemExit(f"az itself is not whole here: {failure}; see requirements.txt")
        print(failure, file=said)
    if len(taken) != 1:
        return f"az refuses it: {said.getvalue().strip() or 'it runs nothing'}"
    for word in words:
        if word.startswith(("{", "[{", '["')):
            try:
                json.loads(word)
            except ValueError as error:
                return f"not JSON: {error}"
    return None


def configure(folder):
    """Nothing of who runs this, and nothing sent."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "ARM_"))]:
        del os.environ[name]
    os.environ["AZURE_CONFIG_DIR"] = folder
    os.environ["AZURE_EXTENSION_DIR"] = os.path.join(folder, "extensions")
    os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "no"
    os.environ["AZURE_CORE_NO_COLOR"] = "yes"
    os.environ["AZURE_EXTENSION_USE_DYNAMIC_INSTALL"] = "no"
    os.environ["AZURE_AUTO-UPGRADE_ENABLE"] = "no"

    import requests

    def send(_, request, **__):
        raise requests.ConnectionError(f"nothing is asked of {request.url}")

    requests.Session.send = send


if __name__ == "__main__":
    main()
