#!/usr/bin/env bash
# Gathers in one folder what run.sh runs on a machine with a GPU, which may have neither cargo nor this toolchain: the
# server, the bench program, and the test programs of cuda/tests with all kernels in them.
#
#     cuda/check/build.sh               into target/gpu-check, for a GPU; needs an nvcc (cuda/check/compile.sh fetches one)
#     cuda/check/build.sh --stand-in    into target/gpu-check-stand-in, to try run.sh on a machine without a GPU
#
# Beside the folder lies the same packed, to be carried.
#
# Kernels are compiled for QUIRE_CUDA_ARCHS, by default sm_90a alone, to keep the folder small.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What Debian 12 has. A GPU's machine with older libraries would refuse to start the programs.
glibc_max=2.36

case "${1-}" in
    "") folder=target/gpu-check
        export QUIRE_CUDA_AOT=require QUIRE_CUDA_ARCHS=${QUIRE_CUDA_ARCHS-sm_90a} ;;
    --stand-in) folder=target/gpu-check-stand-in ;;
    *) echo "usage: $0 [--stand-in]" >&2 && exit 2 ;;
esac
rm -rf "$folder"
mkdir -p "$folder/tests"

cargo build --release --locked --quiet
cp target/release/quire "$folder/"
cuda=(--release --locked --quiet -p quire-cuda --features emulator)
cargo build "${cuda[@]}" --example gpu_bench
cp target/release/examples/gpu_bench "$folder/"

# One line a test program: its name, and where it is.
cargo test "${cuda[@]}" --tests --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["reason"] == "compiler-artifact" and message["target"]["kind"] == ["test"] and message["executable"]:
        print(message["target"]["name"], message["executable"])
' | while read -r name program; do
    case $name in
        emulator | server) ;; # Over the stand-ins, whatever the machine has.
        *) cp "$program" "$folder/tests/$name" ;;
    esac
done

for program in "$folder"/{quire,gpu_bench} "$folder"/tests/*; do
    strip "$program"
    objdump -p "$program" | awk '$1 == "NEEDED" { print $2 }'
done | sort -u >"$folder/needed"
if unknown=$(grep -vE '^(libc|libm|libgcc_s|libdl|libpthread|ld-linux-x86-64)\.so\.[0-9]+$' "$folder/needed"); then
    echo "the programs need libraries that a machine may not have:" $unknown >&2
    exit 1
fi
glibc=$(objdump -T "$folder"/{quire,gpu_bench} "$folder"/tests/* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
if [ "$(printf '%s\n' "${glibc#GLIBC_}" "$glibc_max" | sort -V | tail -n 1)" != "$glibc_max" ]; then
    echo "the programs need $glibc, and Debian 12 has $glibc_max" >&2
    exit 1
fi
rm "$folder/needed"

if [ "${1-}" = --stand-in ]; then
    # The bench program was built just now, with the libraries of the same build.
    libraries=$(ls -dt target/release/build/quire-cuda-*/out/emulator | head -n 1)
    mkdir "$folder/stand-in"
    cp "$libraries"/lib*.so* "$folder/stand-in/"
fi
commit=$(git rev-parse HEAD)
git diff --quiet HEAD || commit="$commit, with changes"
printf '{"commit": "%s", "archs": "%s", "glibc": "%s"}\n' "$commit" "${QUIRE_CUDA_ARCHS-}" "$glibc" \
    >"$folder/build.json"
tar -C target -czf "$folder.tgz" "${folder#target/}"
echo "$folder: $(du -sh "$folder" | cut -f 1), needs $glibc; packed $(du -h "$folder.tgz" | cut -f 1)"
