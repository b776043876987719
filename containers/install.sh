#!/usr/bin/env bash
# What both container files install, into the environment whose pip is on PATH; run from a checkout.
# CI resolves these extras with Python 3.12 (.ci/resolve), as there is no container engine there.
set -euo pipefail
EXTRAS=${EXTRAS:-train,gpu,clinical,sweeps}
pip install --no-cache-dir -c constraints.txt setuptools ".[$EXTRAS]"
case ",$EXTRAS," in *,clinical,*)
  pip install --no-cache-dir -c constraints.txt --no-deps medspacy medspacy_quickumls PyRuSH ;;
esac
# FLASH_ATTN= leaves it out: without a wheel for this torch it compiles for up to an hour
if [ -n "${FLASH_ATTN-1}" ]; then
  pip install --no-cache-dir -c constraints.txt wheel ninja
  pip install --no-cache-dir -c constraints.txt --no-build-isolation flash-attn
fi
