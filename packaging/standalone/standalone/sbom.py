"""The bill of materials: CycloneDX 1.6, as JSON."""

from __future__ import annotations

import email.parser
import hashlib
import json
import os
import re
import sys
import uuid
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from standalone import layout
from standalone.interpreter import Embedded
from standalone.licences import debian_package, debian_version
from standalone.packages import Distribution, normalised

_Component = dict[str, Any]


def write_sboms(distributions: list[Distribution], embedded: Embedded, places: dict[str, Path]) -> None:
    """One for the standalone folder, one for the folder of ONNX Runtime."""
    for parts in (layout.IN_FOLDER, (layout.ORT,)):
        inside = [d for d in distributions if d.part in parts]
        components = [_distribution(d, places[d.part]) for d in inside]
        if layout.CORE in parts:
            components += [_python(), *_libraries(embedded)]
        document = _document(parts[0], components, inside)
        target = places[parts[0]] / layout.SBOM_FILES[parts[0]]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _document(part: str, components: list[_Component], distributions: list[Distribution]) -> dict[str, Any]:
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", layout.DEFAULT_EPOCH))
    main = next((c for c in components if c["name"] == "refit-agent"), None)
    root = {
        **(main or {"name": f"refit-agent-{part}", "version": layout.version()}),
        "type": "application",
        "bom-ref": f"refit-agent-{part}@{layout.version()}",
    }
    components = sorted((c for c in components if c is not main), key=lambda c: str(c["bom-ref"]))
    refs = {d.name: f"pkg:pypi/{d.name}@{d.version}" for d in distributions if d.name != "refit-agent"}
    dependencies = [{"ref": root["bom-ref"], "dependsOn": [c["bom-ref"] for c in components]}]
    dependencies += [
        {"ref": refs[d.name], "dependsOn": sorted(refs[n] for n in _requires(d) if n in refs)}
        for d in sorted(distributions)
        if d.name in refs
    ]
    body = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, timezone.utc).isoformat().replace("+00:00", "Z"),
            "component": root,
        },
        "components": components,
        "dependencies": dependencies,
    }
    # Told from the content, so that a second build of the same gives the same document.
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(body, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **body,
    }


def _distribution(distribution: Distribution, place: Path) -> _Component:
    metadata = _metadata(distribution)
    purl = f"pkg:pypi/{distribution.name}@{distribution.version}"
    component: _Component = {
        "type": "library",
        "bom-ref": purl,
        "name": distribution.name,
        "version": distribution.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": distribution.sha256}],
        "licenses": _licences(metadata),
    }
    # The libraries that a wheel brings of others, such as OpenBLAS in that of NumPy.
    inside = [
        {
            "type": "library",
            "bom-ref": f"{purl}#{name}",
            "name": re.sub(r"(-[0-9a-f]{8})+(?=\.so)", "", name.rsplit("/", 1)[-1]),
            "hashes": [{"alg": "SHA-256", "content": _sha256(place / "lib" / name)}],
        }
        for name in distribution.files
        if re.match(r"[^/]+\.libs/", name)
    ]
    return {**component, "components": inside} if inside else component


def _python() -> _Component:
    number = ".".join(str(n) for n in sys.version_info[:3])
    purl = f"pkg:generic/cpython@{number}"
    return {
        "type": "platform",
        "bom-ref": purl,
        "name": "cpython",
        "version": number,
        "purl": purl,
        "licenses": [{"expression": "PSF-2.0"}],
    }


def _libraries(embedded: Embedded) -> list[_Component]:
    found = []
    for name, origin in embedded.libraries.items():
        package = debian_package(origin)
        version = debian_version(package) if package else ""
        component: _Component = {"type": "library", "bom-ref": f"python/lib/{name}", "name": name}
        if version:
            component |= {
                "version": version,
                "purl": f"pkg:deb/debian/{package}@{version.replace('+', '%2B').replace(':', '%3A')}",
            }
        shipped = _sha256(embedded.root / "lib" / name)
        found.append({**component, "hashes": [{"alg": "SHA-256", "content": shipped}]})
    return found


def _metadata(distribution: Distribution) -> email.message.Message:
    with zipfile.ZipFile(distribution.wheel) as archive:
        (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


def _licences(metadata: email.message.Message) -> list[dict[str, Any]]:
    expression = metadata.get("License-Expression")
    if expression:
        return [{"expression": expression}]
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    short = (metadata.get("License") or "").strip()
    names = [short] if short and len(short) < 80 and "\n" not in short else classifiers
    return [{"license": {"name": name}} for name in names or ["see the licence text"]]


def _requires(distribution: Distribution) -> set[str]:
    listed = _metadata(distribution).get_all("Requires-Dist", [])
    return {normalised(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in listed if "extra ==" not in line}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
