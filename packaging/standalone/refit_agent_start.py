"""Runs the command line with the packages of this folder, and nothing else of the machine's Python."""

import os
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))

# OpenSSL in the folder looks for certificates where the build machine has them; other systems have them elsewhere.
_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine and others
)
if "SSL_CERT_FILE" not in os.environ and "SSL_CERT_DIR" not in os.environ:
    for _path in _CERTIFICATES:
        if os.path.exists(_path):
            os.environ["SSL_CERT_FILE"] = _path
            break

from refit_agent.cli.main import run  # noqa: E402 - found by the path set above

run()
