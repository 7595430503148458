"""Which Debian archive images are built from: the environment's, or the one that this host's apt uses."""

from __future__ import annotations

import os
import re

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools

MIRROR_VARIABLE = "HARNESS_DEBIAN_MIRROR"
_CODENAMES = "bullseye|bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable"
_INDEX_URI = re.compile(rf"'(?P<base>[^']+?)/dists/(?:{_CODENAMES})/main/binary-[^/']+/Packages")


def mirror(deadline: Deadline) -> str:
    """The base address of a Debian archive: the environment's, or the one that this host's apt uses.

    :raises HostError: there is none.
    """
    chosen = os.environ.get(MIRROR_VARIABLE, "")
    if chosen:
        if re.search(r"[\s\[\]]", chosen) or ":" not in chosen:
            raise HostError(
                f"{MIRROR_VARIABLE} is no address: {chosen!r}", hint="write it as in sources.list, no suite"
            )
        return chosen
    hint = "is the host's apt configuration broken?"
    listed = tools.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)\t$(ORIGIN)\t$(LABEL)\t$(CODENAME)"],
        hint=hint,
        deadline=deadline,
    )
    bases = mirrors_of_targets(listed)
    if not bases:
        # Lists that were never downloaded name no origin; the sources still say where they would come from.
        printed = tools.run(["apt-get", "update", "--print-uris", "-oDebug::NoLocking=1"], hint=hint, deadline=deadline)
        bases = mirrors_of_uris(printed)
    if not bases:
        raise HostError(
            "this host's apt knows no Debian archive",
            hint=f"set {MIRROR_VARIABLE} to one, as it stands in a sources.list",
        )
    return bases[0]


def mirrors_of_targets(listed: str) -> list[str]:
    """Debian's main archives in what ``apt-get indextargets`` lists: base, origin, label and codename, by tabs."""
    rows = (line.split("\t") for line in listed.splitlines())
    found = [row[0] for row in rows if row[1:3] == ["Debian", "Debian"] and "-" not in row[3]]
    return list(dict.fromkeys(base for base in found if not base.startswith("cdrom:")))


def mirrors_of_uris(printed: str) -> list[str]:
    """What looks like Debian's main archive in ``apt-get update --print-uris``; other vendors use its suite names."""
    found = dict.fromkeys(f"{match['base']}/" for match in _INDEX_URI.finditer(printed))
    return sorted(found, key=lambda base: not base.endswith("/debian/"))
