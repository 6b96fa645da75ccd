#!/bin/sh
# What the image's build runs, and its test (tests/integration/test_image.py). Needs python3.11 and uv.
#
#   install.sh dependencies cpu|gpu VENV    a new virtual environment with what ./pyproject.toml asks for, less regrow
#   install.sh wheel FOLDER VENV            regrow itself, from the wheel in that folder
#
# uv takes [tool.uv] of ./pyproject.toml: no torchvision, torchaudio, torchcodec. A wheel does not carry it, so the wheel
# comes without dependencies, on top of them. That way it is a small layer of its own, too.
set -eu

dependencies() {
	python3.11 -m venv "$2"
	if [ "$1" = cpu ]; then
		# A local version that the package index does not hold: first as pip is configured, then from PyTorch's CPU wheels.
		"$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "torch==2.13.0+cpu" 2>/dev/null ||
			uv pip install --quiet --python "$2/bin/python" --torch-backend cpu "torch==2.13.0"
	fi
	uv pip install --quiet --python "$2/bin/python" --requirements pyproject.toml --extra "$1"
}

wheel() {
	"$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$1"/regrow-*.whl
}

"$@"
