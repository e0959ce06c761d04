#!/usr/bin/env bash
# Everything that CI checks: creates the environment if it is missing, then runs format, lint, types, docs and tests,
# some of them again with the oldest transformers and inside lmms-eval.
#
#   bash scripts/test.sh -k selection    # options are pytest's
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh || exit 1
bash scripts/setup_browser.sh  # without a browser, tests of pages skip, and in CI fail

# No test may need a network: one that reaches for a hub fails at once instead of waiting.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
status=0
bash scripts/check.sh || status=1
echo "== tests"
.venv/bin/python -m pytest -n auto "$@" </dev/null || status=1
# These have their own environments. Skip them if pytest options narrow the run.
if (($# == 0)); then
    echo "== tests with the oldest transformers"
    bash scripts/test_oldest.sh </dev/null || status=1
    echo "== lmms-eval"
    bash scripts/test_lmms_eval.sh </dev/null || status=1
fi

echo "finished in ${SECONDS} s, $([[ $status == 0 ]] && echo "all passed" || echo "with failures, see above")"
exit "$status"
