"""What a release is made of: versions that agree, licences of all that is shipped, workflows that can be read."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import sthist

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ["3.11", "3.12", "3.13"]


def workflow(name):
    """A workflow; YAML reads its key "on" as true."""
    content = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yaml").read_text())
    return content | {"on": content.get("on", content.get(True))}


def commands(job):
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["project"]["version"] == sthist.__version__ == citation["version"]
    assert {"authors", "title", "abstract", "license", "repository-code", "keywords"} <= set(citation)
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Source"]
    entry = yaml.safe_load((ROOT / "docs" / "ecosystem" / "meta.yaml").read_text())
    assert entry["version"] == f"v{sthist.__version__}"
    assert entry["license"] == citation["license"] == "BSD-3-Clause"


def test_all_weights_have_a_licence():
    """Each file that is no code is named, with its licence, and so is the licence in what the package states."""
    text = (ROOT / "LICENSE-WEIGHTS").read_text()
    source = ROOT / "src"
    shipped = [path for path in source.rglob("*") if path.suffix in {".safetensors", ".npz", ".h5", ".csv", ".png"}]
    assert len(shipped) >= 2
    assert not [path.name for path in shipped if str(path.relative_to(source)) not in text]
    stated = PROJECT["project"]["license"].split(" AND ")
    for name, said in (("BSD-3-Clause", "BSD 3-Clause"), ("CC-BY-4.0", "CC BY 4.0"), ("CC0-1.0", "CC0 1.0")):
        assert name in stated
        assert said in text
    assert all((ROOT / name).is_file() for name in PROJECT["project"]["license-files"])


def test_workflows():
    """Tests on each version of Python; wheels are built, checked and tried; a tag alone publishes, without a token."""
    assert workflow("test")["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    stated = [line for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert [line.rpartition(" ")[2] for line in stated] == PYTHONS
    build = workflow("build")["jobs"]
    assert ".ci/build" in commands(build["build"])
    assert ".ci/smoke" in commands(build["smoke"])
    assert build["smoke"]["strategy"]["matrix"]["python"] == PYTHONS
    assert ".ci/resolve" in commands(build["dependencies"])
    release = workflow("release")
    assert release["on"]["push"] == {"tags": ["v*"]}
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["if"] == "github.ref_type == 'tag'"
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yaml").read_text()


@pytest.mark.parametrize("name", ["build", "smoke", "resolve", "run"])
def test_scripts_of_the_workflows_can_be_run(name):
    path = ROOT / ".ci" / name
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert name == "run" or os.access(path, os.X_OK)


def test_forms_of_issues():
    """As GitHub reads them: fields with an id of their own and a label."""
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        names = [field["id"] for field in form["body"]]
        assert len(names) == len(set(names))
        assert all(field["attributes"]["label"] for field in form["body"])


def test_the_entry_of_the_ecosystem_has_what_is_required():
    entry = yaml.safe_load((ROOT / "docs" / "ecosystem" / "meta.yaml").read_text())
    required = "name description project_home documentation_home install license tags version category contact"
    assert not set(required.split()) - set(entry)
    assert len(entry["tags"]) == len(set(entry["tags"])) > 0


def test_the_changelog_is_in_parts():
    text = (ROOT / "CHANGELOG.md").read_text()
    parts = re.findall(r"^### (.+)$", text.split("## [Unreleased]")[1].split("\n## [")[0], re.MULTILINE)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {"Added", "Changed", "Fixed"} <= set(parts)


def test_every_requirement_has_a_lower_bound():
    needed = map(Requirement, PROJECT["project"]["dependencies"])
    assert not [each.name for each in needed if not any(part.operator == ">=" for part in each.specifier)]


def test_the_long_description_stands_alone():
    """Links of the README, as they are shown where the package is listed, lead to the repository."""
    text = (ROOT / "README.md").read_text()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 5
    assert not [link for link in links if not link.startswith("https://")]
    assert "![nuclear stain, transcripts" in text
    assert "(https://raw.githubusercontent.com/scverse/sthist/main/docs/_static/gallery/" in text
