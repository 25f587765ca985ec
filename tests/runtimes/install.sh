#!/usr/bin/env bash
# What the tests marked `runtimes` open ONNX files with, the oldest promised and the newest of each, installed into a
# folder that is named to them by RUNTIMES:
#
#     tests/runtimes/install.sh ~/runtimes
#     RUNTIMES=~/runtimes python -m pytest -m runtimes
#
# Needs Python 3.10 or 3.11, for which there are packages as old; node and Chromium come from Debian where they are
# missing. docs/deployment.md has what was measured.
set -euo pipefail
mkdir -p "$1"
cd "$1"

install() { # folder, then Python packages
    python3 -m venv "$1"
    "$1/bin/pip" install -q "${@:2}"
}
install_by_npm() { # folder, then packages; without their scripts, one of which would fetch CUDA
    npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$@"
}

for program in npm chromium; do
    command -v "$program" > /dev/null || { apt-get update -q && apt-get install -q -y "$program"; } > /dev/null
done
install oldest onnxruntime==1.17.0 openvino==2024.6.0 fastembed==0.6.0 "numpy<2"
install newest onnxruntime openvino fastembed
install opset_18 onnxruntime==1.15.0 "numpy<2"
install_by_npm oldest @huggingface/transformers@3.8.0 # older ones read no tokenizer.json of today
install_by_npm newest @huggingface/transformers@4.3.1 puppeteer-core@24.43.1 # in its newest version it needs node 22
