#!/usr/bin/env bash
# usage: test_install.sh BUILD SOURCE CC [FLAG...]
# Installs the build to a folder of its own, then from there alone: every public header compiles by itself, as C and
# as C++ where there is a C++ compiler; no private header is there; examples/custom_op builds with one line of
# pkg-config, and with its CMakeLists.txt, and runs; the installed program runs.
set -euo pipefail
build=$(realpath "$1") source=$(realpath "$2") cc=$3
shift 3
flags=("$@")

prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix/weft" >/dev/null
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$prefix/weft" -name weft.pc)")

if find "$prefix/weft" -name '*_impl.h' | grep .; then
  echo "private headers were installed" >&2
  exit 1
fi

read -ra cflags <<<"$(pkg-config --cflags weft)"
read -ra libs <<<"$(pkg-config --libs --static weft)"
cxx=false
if echo '#include <cstdio>' | "$cc" -x c++ -fsyntax-only - 2>/dev/null; then cxx=true; fi
headers=0
while read -r header; do
  printf '#include "%s"\n' "$header" >"$prefix/one.c"
  "$cc" -std=gnu17 -Wall -Wextra -Werror -fsyntax-only "${cflags[@]}" "$prefix/one.c"
  if $cxx; then "$cc" -x c++ -std=c++17 -Wall -fsyntax-only "${cflags[@]}" "$prefix/one.c"; fi
  headers=$((headers + 1))
done < <(cd "$prefix/weft/include/weft" && find . -name '*.h' | sed 's|^\./||' | sort)
echo "$headers headers compile by themselves"
[ $headers -gt 0 ]

cp -r "$source/examples/custom_op" "$prefix/custom_op"
cd "$prefix/custom_op"
"$cc" -std=gnu17 -Wall -Wextra -Werror custom_op.c "${flags[@]}" "${cflags[@]}" "${libs[@]}" -o one_line
./one_line
./one_line layers squareplus | grep -q 'how round' # the program knows the layer
sed 's/type: swiglu, width: 448/type: squareplus, b: 0.5/' "$source/experiments/configs/quickstart.yaml" >own.yaml
grep -q squareplus own.yaml
./one_line config check own.yaml

CC=$cc CFLAGS="${flags[*]}" cmake -S . -B build >/dev/null
cmake --build build >/dev/null
./build/custom_op >/dev/null

if [ -x "$prefix/weft/bin/weft" ]; then "$prefix/weft/bin/weft" version >/dev/null; fi
echo "installed, built and ran the example"
