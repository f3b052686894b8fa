"""Judges a pipeline by Azure Pipelines' own schema (`azure FILE`), and a workflow by GitHub's (`github FILE`), as check-jsonschema has
them; and prints the script of its one step.
"""

import sys

import jsonschema
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

kind, file = sys.argv[1:]
with open(file, encoding="utf-8") as source:
    # Azure Pipelines takes every scalar for a text, GitHub does not.
    text = source.read()
    whole = yaml.load(text, yaml.BaseLoader if kind == "azure" else yaml.SafeLoader)
if kind == "github":
    # YAML 1.1 takes the key `on` for true.
    whole = {"on" if key is True else key: value for key, value in whole.items()}
schema = get_builtin_schema({"azure": "vendor.azure-pipelines", "github": "vendor.github-workflows"}[kind])
errors = list(jsonschema.Draft7Validator(schema).iter_errors(whole))
if errors:
    sys.exit(f"{file}: {jsonschema.exceptions.best_match(errors).message[:2000]}")
if kind == "azure":
    [script] = [it["inputs"]["inlineScript"] for it in whole["steps"] if "task" in it]
else:
    [[script]] = [[it["run"] for it in job["steps"]] for job in whole["jobs"].values()]
print(script, end="")
