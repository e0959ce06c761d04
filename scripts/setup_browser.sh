#!/usr/bin/env bash
# Installs Chromium and its driver for the tests of the pages, but only if asked to (CI=true, or VLM_PRUNER_BROWSER=1)
# and permitted to. Otherwise those tests skip and say so.
set -uo pipefail

if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then
    exit 0
fi
if [[ "${CI:-}" != true && "${VLM_PRUNER_BROWSER:-}" != 1 ]]; then
    exit 0
fi
if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "browser: chromium and chromedriver are missing, and only root with apt-get can install them here" >&2
    exit 0
fi
echo "browser: installing chromium and chromedriver"
log="$(mktemp)"
if apt-get update -qq >"$log" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >>"$log" 2>&1; then
    rm -f "$log"
else
    echo "browser: installation failed:" >&2
    tail -n 5 "$log" >&2
    rm -f "$log"
fi
